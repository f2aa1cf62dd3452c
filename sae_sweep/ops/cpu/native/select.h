// The k-th largest of many numbers, none of them NaN; 1 <= k <= how many they are.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "vectors.h"

constexpr int kHalvings = 24;
constexpr int64_t kWindow = 4;  // numbers that are few enough to be put in order

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
