// Which of a token's features are the largest, or above a floor.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "rows.h"
#include "vectors.h"

// Candidates: with |z - estimate| <= slack known, everything that may be among the k largest, or above a floor.

struct Candidate {
  float low;   // what it is at least
  float high;  // what it is at most
  int32_t feature;
};

struct Exact {
  float value;
  int32_t feature;
};

inline bool larger(const Exact& a, const Exact& b) {
  return a.value > b.value || (a.value == b.value && a.feature < b.feature);
}

// The candidates of one token. With k > 0, `bar` rises to the k-th largest of what the candidates are at least.
class Candidates {
 public:
  void start(int64_t k) {
    k_ = k;
    bar_ = 0;
    room_ = static_cast<size_t>(k ? std::max<int64_t>(4 * k, k + 64) : 0);
    found_.clear();
  }
  float bar() const { return bar_; }
  // `high` is the estimate + slack; where either is no number, so may be the value
  void add(float high, float slack, int64_t feature) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    const bool known = std::isfinite(slack) && !std::isnan(high);
    found_.push_back({known ? high - 2 * slack : -infinity, known ? high : infinity, static_cast<int32_t>(feature)});
    if (room_ && found_.size() >= room_) raise_bar();
  }
  const std::vector<Candidate>& finish() {
    if (k_ && found_.size() > static_cast<size_t>(k_)) raise_bar();
    return found_;
  }

 private:
  void raise_bar() {
    lows_.clear();
    for (const auto& c : found_) lows_.push_back(c.low);
    std::nth_element(lows_.begin(), lows_.begin() + (k_ - 1), lows_.end(), std::greater<float>());
    const float kth = lows_[k_ - 1];
    // `bar_` excludes what equals it; what is tied with the k-th must stay
    const float below = std::nextafter(kth, -std::numeric_limits<float>::infinity());
    bar_ = std::max(bar_, below);
    const float bar = bar_;
    found_.erase(std::remove_if(found_.begin(), found_.end(), [bar](const Candidate& c) { return !(c.high > bar); }),
                 found_.end());
    // many ties: go on with more room rather than prune at every step
    if (2 * found_.size() > room_) room_ = 2 * found_.size() + 64;
  }

  int64_t k_ = 0;
  float bar_ = 0;
  size_t room_ = 0;
  std::vector<Candidate> found_;
  std::vector<float> lows_;
};

struct Encoder {
  const float* weights;  // [features, width]
  const float* bias;     // [features] or null
  int64_t features;
  int64_t width;
  const float* row(int64_t f) const { return weights + f * width; }
};

// What is wanted of each token: its k largest (of those above 0), or, with k = 0, all above the features' floors.
struct Wanted {
  int64_t k;
  const float* floors;  // [features], with k = 0
};

inline void exact_values(const Encoder& encoder, const float* x, const std::vector<Candidate>& candidates,
                  std::vector<Exact>& out) {
  out.clear();
  const auto add = [&](float product, int32_t f) {
    const float value = product + (encoder.bias ? encoder.bias[f] : 0.0f);
    // NaN cannot be ordered; infinity spoils the loss just as well
    out.push_back({std::isnan(value) ? std::numeric_limits<float>::infinity() : value, f});
  };
  // always four at a time: a value's bits do not depend on what else is a candidate
  for (size_t c = 0; c < candidates.size(); c += 4) {
    const size_t here = std::min<size_t>(4, candidates.size() - c);
    const float* four[4];
    float products[4];
    for (size_t j = 0; j < 4; j++) four[j] = encoder.row(candidates[c + std::min(j, here - 1)].feature);
    dot_rows(x, four, encoder.width, products);
    for (size_t j = 0; j < here; j++) add(products[j], candidates[c + j].feature);
  }
}

// Keep what is wanted of the exact values, in order of feature; exactly k, filled up with zeros, if k > 0.
inline void keep_wanted(const Wanted& wanted, std::vector<Exact>& exact) {
  if (wanted.k) {
    const size_t k = static_cast<size_t>(wanted.k);
    exact.erase(std::remove_if(exact.begin(), exact.end(), [](const Exact& e) { return !(e.value > 0); }), exact.end());
    if (exact.size() > k) {
      std::nth_element(exact.begin(), exact.begin() + (k - 1), exact.end(), larger);
      exact.resize(k);
    }
  } else {
    const float* floors = wanted.floors;
    exact.erase(std::remove_if(exact.begin(), exact.end(),
                               [floors](const Exact& e) { return !(e.value > floors[e.feature]); }),
                exact.end());
  }
  std::sort(exact.begin(), exact.end(), [](const Exact& a, const Exact& b) { return a.feature < b.feature; });
  if (wanted.k) exact.resize(static_cast<size_t>(wanted.k), Exact{0.0f, 0});
}

// ---------------------------------------------------------------------------------------------------------
// The k-th largest of many numbers, none of them NaN; 1 <= k <= how many they are.

constexpr int kHalvings = 24;
constexpr int64_t kWindow = 32;  // numbers that are few enough to be put in order

// Places of the numbers that are at least `bar`.
inline int64_t places_from(const float* numbers, int64_t count, float bar, std::vector<int32_t>& places) {
  if (static_cast<int64_t>(places.size()) < count) places.resize(count);
  int32_t* next = places.data();
  int64_t i = 0;
#if defined(__AVX2__)
  for (; i + kLanes <= count; i += kLanes)
    for (uint32_t hits = at_least(load(numbers + i), spread(bar)); hits; hits &= hits - 1)
      *next++ = static_cast<int32_t>(i) + __builtin_ctz(hits);
#endif
  for (; i < count; i++)
    if (numbers[i] >= bar) *next++ = static_cast<int32_t>(i);
  return next - places.data();
}

inline int64_t count_from(const float* numbers, int64_t count, float bar) {
  int32_t passed = 0;
#pragma omp simd reduction(+ : passed)
  for (int64_t i = 0; i < count; i++) passed += numbers[i] >= bar;
  return passed;
}

struct Room {
  std::vector<float> numbers, window;
  std::vector<int32_t> places;
};

// The range is halved until few numbers are between the bars; those are put in order.
inline float kth_largest(const float* numbers, int64_t count, int64_t k, Room& room) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  float low = infinity, high = -infinity;  // at least k numbers are from `low` on, fewer from `high` on
  int64_t i = 0;
#if defined(__AVX2__)
  Floats least = spread(low), most = spread(high);
  for (; i + kLanes <= count; i += kLanes) {
    least = least_of(least, load(numbers + i));
    most = most_of(most, load(numbers + i));
  }
  float lows[kLanes], highs[kLanes];
  store(lows, least);
  store(highs, most);
  low = *std::min_element(lows, lows + kLanes);
  high = *std::max_element(highs, highs + kLanes);
#endif
  for (; i < count; i++) {
    low = std::min(low, numbers[i]);
    high = std::max(high, numbers[i]);
  }
  high = std::nextafter(high, infinity);
  int64_t from_low = count, from_high = 0;
  for (int halving = 0; halving < kHalvings && from_low - from_high > kWindow && std::isfinite(high - low); halving++) {
    const float middle = low + 0.5f * (high - low);
    if (middle <= low || middle >= high) break;
    const int64_t passed = count_from(numbers, count, middle);
    (passed >= k ? low : high) = middle;
    (passed >= k ? from_low : from_high) = passed;
  }
  room.window.clear();
  const int64_t passed = places_from(numbers, count, low, room.places);
  for (int64_t p = 0; p < passed; p++)
    if (numbers[room.places[p]] < high || from_high == 0) room.window.push_back(numbers[room.places[p]]);
  const auto kth = room.window.begin() + (k - from_high - 1);
  std::nth_element(room.window.begin(), kth, room.window.end(), std::greater<float>());
  return *kth;
}

// The k largest of `count` numbers, of either sign, in order of place -> their columns and values. The column of a
// place is the place, or what `columns` says. What is no number is infinite.
inline void keep_largest(const float* numbers, const int32_t* columns, int64_t count, int64_t k, Room& room,
                         int32_t* out_columns, float* out) {
  room.numbers.resize(count);
  for (int64_t i = 0; i < count; i++)
    room.numbers[i] = std::isnan(numbers[i]) ? std::numeric_limits<float>::infinity() : numbers[i];
  const float kth = kth_largest(room.numbers.data(), count, k, room);
  const int64_t passed = places_from(room.numbers.data(), count, kth, room.places);
  int64_t ties = k;
  for (int64_t p = 0; p < passed; p++) ties -= room.numbers[room.places[p]] > kth;
  for (int64_t p = 0; p < passed; p++) {
    const int32_t place = room.places[p];
    if (room.numbers[place] == kth && ties-- <= 0) continue;
    *out_columns++ = columns ? columns[place] : place;
    *out++ = room.numbers[place];
  }
}
