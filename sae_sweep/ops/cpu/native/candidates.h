// Which of a token's features are the largest, or above a floor: with |z - estimate| <= slack known, everything that
// may be wanted is a candidate; exact products decide.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "rows.h"
#include "select.h"
#include "vectors.h"

// The candidates of one token. With k > 0, `bar` rises to the k-th largest of what the candidates are at least.
class Candidates {
 public:
  void start(int64_t k) {
    k_ = k;
    bar_ = 0;
    room_ = k ? std::max<int64_t>(4 * k, k + 64) : std::numeric_limits<int64_t>::max();
    count_ = 0;
  }
  float bar() const { return bar_; }
  // `high` is the estimate + slack; where either is no number, so may be the value
  void add(float high, float slack, int32_t feature, Room& room) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    make_space();
    const bool known = std::isfinite(slack) && !std::isnan(high);
    lows_[count_] = known ? high - 2 * slack : -infinity;  // what it is at least
    highs_[count_] = known ? high : infinity;              // what it is at most
    features_[count_++] = feature;
    if (count_ >= room_) raise_bar(room);
  }
#if defined(__AVX2__)
  // Those of kLanes features that `hits` marks; a negative one is none.
  void add(uint32_t hits, Floats high, Floats slack, Ints features, Room& room) {
    const Floats infinity = spread(std::numeric_limits<float>::infinity());
    make_space();
    // of a NaN and a number, these return the number
    compress(&lows_[count_], most_of(multiply_add(spread(-2.0f), slack, high), negative(infinity)), hits);
    compress(&highs_[count_], least_of(high, infinity), hits);
    compress(&features_[count_], features, hits);
    count_ += __builtin_popcount(hits);
    if (count_ >= room_) raise_bar(room);
  }
#endif
  // How many there are in the end; `feature` tells which.
  int64_t finish(Room& room) {
    if (k_ && count_ > k_) raise_bar(room);
    count_ = std::remove_if(features_.begin(), features_.begin() + count_, [](int32_t f) { return f < 0; }) -
             features_.begin();
    return count_;
  }
  int32_t feature(int64_t i) const { return features_[i]; }

 private:
  static constexpr int64_t kSpace = 16;  // numbers that are written at once, at most

  void make_space() {
    if (count_ + kSpace <= static_cast<int64_t>(highs_.size())) return;
    const size_t size = 2 * count_ + 4 * kSpace;
    lows_.resize(size), highs_.resize(size), features_.resize(size);
  }

  // not inlined: it would take registers from the loop over tiles
  __attribute__((noinline)) void raise_bar(Room& room) {
    const float kth = kth_largest(lows_.data(), count_, k_, room);
    // `bar_` excludes what equals it; what is tied with the k-th must stay
    bar_ = std::max(bar_, std::nextafter(kth, -std::numeric_limits<float>::infinity()));
    int64_t kept = 0;
    for (int64_t i = 0; i < count_; i++) {  // without a branch
      lows_[kept] = lows_[i], highs_[kept] = highs_[i], features_[kept] = features_[i];
      kept += highs_[i] > bar_;
    }
    count_ = kept;
    // many ties: go on with more room rather than prune at every step
    if (2 * count_ > room_) room_ = 2 * count_ + 64;
  }

  int64_t k_ = 0, room_ = 0, count_ = 0;
  float bar_ = 0;
  std::vector<float> lows_, highs_;
  std::vector<int32_t> features_;
};

struct Exact {
  float value;
  int32_t feature;
};

inline bool larger(const Exact& a, const Exact& b) {
  return a.value > b.value || (a.value == b.value && a.feature < b.feature);
}

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

inline void exact_values(const Encoder& encoder, const float* x, const Candidates& candidates, int64_t count,
                         std::vector<Exact>& out) {
  out.clear();
  const auto add = [&](float product, int32_t f) {
    const float value = product + (encoder.bias ? encoder.bias[f] : 0.0f);
    // NaN cannot be ordered; infinity spoils the loss just as well
    out.push_back({std::isnan(value) ? std::numeric_limits<float>::infinity() : value, f});
  };
  // always four at a time: a value's bits do not depend on what else is a candidate
  for (int64_t c = 0; c < count; c += 4) {
    const int64_t last = std::min<int64_t>(4, count - c) - 1;
    const float* four[4];
    float products[4];
    for (int64_t j = 0; j < 4; j++) four[j] = encoder.row(candidates.feature(c + std::min(j, last)));
    dot_rows(x, four, encoder.width, products);
    for (int64_t j = 0; j <= last; j++) add(products[j], candidates.feature(c + j));
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
