// The k-th largest of many numbers, none of them NaN, for 1 <= k <= count.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "vectors.h"

constexpr int kHalvings = 24;
constexpr int64_t kWindow = 4;  // so few numbers are sorted

// Writes the indices of all numbers >= `least` and returns their count.
inline int64_t indices_at_least(const float* numbers, int64_t count, float least, std::vector<int32_t>& indices) {
  if (static_cast<int64_t>(indices.size()) < count) indices.resize(count);
  int32_t* next = indices.data();
  int64_t i = 0;
#if defined(__AVX2__)
  for (; i + kLanes <= count; i += kLanes)
    for (uint32_t hits = at_least(load(numbers + i), broadcast(least)); hits; hits &= hits - 1)
      *next++ = static_cast<int32_t>(i) + __builtin_ctz(hits);
#endif
  for (; i < count; i++)
    if (numbers[i] >= least) *next++ = static_cast<int32_t>(i);
  return next - indices.data();
}

inline int64_t count_at_least(const float* numbers, int64_t count, float least) {
  int32_t passed = 0;
#pragma omp simd reduction(+ : passed)
  for (int64_t i = 0; i < count; i++) passed += numbers[i] >= least;
  return passed;
}

struct SelectBuffers {
  std::vector<float> numbers, window;
  std::vector<int32_t> indices;
};

struct Range {
  float low, high;
};

// From the smallest number to just above the largest.
inline Range range_of(const float* numbers, int64_t count) {
  float low = std::numeric_limits<float>::infinity(), high = -low;
  int64_t i = 0;
#if defined(__AVX2__)
  Floats least = broadcast(low), most = broadcast(high);
  for (; i + kLanes <= count; i += kLanes) {
    least = minimum(least, load(numbers + i));
    most = maximum(most, load(numbers + i));
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
  return {low, std::nextafter(high, std::numeric_limits<float>::infinity())};
}

// Bisects the range until few numbers are left in it, and sorts those.
inline float kth_largest(const float* numbers, int64_t count, int64_t k, SelectBuffers& buffers) {
  auto [low, high] = range_of(numbers, count);
  int64_t from_low = count, from_high = 0;  // numbers >= low: at least k; numbers >= high: fewer than k
  for (int halving = 0; halving < kHalvings && from_low - from_high > kWindow && std::isfinite(high - low); halving++) {
    const float middle = low + 0.5f * (high - low);
    if (middle <= low || middle >= high) break;
    const int64_t passed = count_at_least(numbers, count, middle);
    (passed >= k ? low : high) = middle;
    (passed >= k ? from_low : from_high) = passed;
  }
  buffers.window.clear();
  const int64_t passed = indices_at_least(numbers, count, low, buffers.indices);
  for (int64_t p = 0; p < passed; p++)
    if (numbers[buffers.indices[p]] < high || from_high == 0) buffers.window.push_back(numbers[buffers.indices[p]]);
  const auto kth = buffers.window.begin() + (k - from_high - 1);
  std::nth_element(buffers.window.begin(), kth, buffers.window.end(), std::greater<float>());
  return *kth;
}

// Writes column and value of the k largest of `count` numbers of either sign, in order of index; the first of ties.
// The column of an index is `columns[index]`, or the index itself if `columns` is null. NaN becomes infinity.
inline void keep_largest(const float* numbers, const int32_t* columns, int64_t count, int64_t k,
                         SelectBuffers& buffers, int32_t* out_columns, float* out) {
  buffers.numbers.resize(count);
  for (int64_t i = 0; i < count; i++)
    buffers.numbers[i] = std::isnan(numbers[i]) ? std::numeric_limits<float>::infinity() : numbers[i];
  const float kth = kth_largest(buffers.numbers.data(), count, k, buffers);
  const int64_t passed = indices_at_least(buffers.numbers.data(), count, kth, buffers.indices);
  int64_t ties = k;
  for (int64_t p = 0; p < passed; p++) ties -= buffers.numbers[buffers.indices[p]] > kth;
  for (int64_t p = 0; p < passed; p++) {
    const int32_t index = buffers.indices[p];
    if (buffers.numbers[index] == kth && ties-- <= 0) continue;
    *out_columns++ = columns ? columns[index] : index;
    *out++ = buffers.numbers[index];
  }
}
