// Candidates for a token's selection: every feature whose pre-activation z may be among the k largest or above its
// floor, given |z - estimate| <= z_error. Exact products then decide.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "rows.h"
#include "select.h"
#include "vectors.h"

// The candidates of one token. With k > 0, `kth_largest` rises to the k-th largest lower bound among them.
class Candidates {
 public:
  void start(int64_t k) {
    k_ = k;
    kth_largest_ = 0;
    capacity_ = k ? std::max<int64_t>(4 * k, k + 64) : std::numeric_limits<int64_t>::max();
    count_ = 0;
  }
  float kth_largest() const { return kth_largest_; }
  // `high` is the estimate + z_error. If either is NaN, z may be anything.
  void add(float high, float z_error, int32_t feature, SelectBuffers& buffers) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    grow();
    const bool bounded = std::isfinite(z_error) && !std::isnan(high);
    lows_[count_] = bounded ? high - 2 * z_error : -infinity;  // lower bound of z
    highs_[count_] = bounded ? high : infinity;                // upper bound of z
    features_[count_++] = feature;
    if (count_ >= capacity_) prune(buffers);
  }
#if defined(__AVX2__)
  // Adds those of kLanes features whose bit is set in `hits`. A negative feature is an empty slot.
  void add(uint32_t hits, Floats high, Floats z_error, Ints features, SelectBuffers& buffers) {
    const Floats infinity = broadcast(std::numeric_limits<float>::infinity());
    grow();
    // if one argument is NaN, maximum and minimum return the second
    compress(&lows_[count_], maximum(multiply_add(broadcast(-2.0f), z_error, high), negative(infinity)), hits);
    compress(&highs_[count_], minimum(high, infinity), hits);
    compress(&features_[count_], features, hits);
    count_ += __builtin_popcount(hits);
    if (count_ >= capacity_) prune(buffers);
  }
#endif
  // Drops what can no longer be selected and returns the number left, to be read with `feature`.
  int64_t finish(SelectBuffers& buffers) {
    if (k_ && count_ > k_) prune(buffers);
    count_ = std::remove_if(features_.begin(), features_.begin() + count_, [](int32_t f) { return f < 0; }) -
             features_.begin();
    return count_;
  }
  int32_t feature(int64_t i) const { return features_[i]; }

 private:
  static constexpr int64_t kMaxWrite = 16;  // floats that one `compress` may write

  void grow() {
    if (count_ + kMaxWrite <= static_cast<int64_t>(highs_.size())) return;
    const size_t size = 2 * count_ + 4 * kMaxWrite;
    lows_.resize(size), highs_.resize(size), features_.resize(size);
  }

  // not inlined: it would take registers from the loop over tiles
  __attribute__((noinline)) void prune(SelectBuffers& buffers) {
    const float kth = ::kth_largest(lows_.data(), count_, k_, buffers);
    // candidates must exceed `kth_largest_`, and ties with the k-th have to stay
    kth_largest_ = std::max(kth_largest_, std::nextafter(kth, -std::numeric_limits<float>::infinity()));
    int64_t kept = 0;
    for (int64_t i = 0; i < count_; i++) {  // branch-free
      lows_[kept] = lows_[i], highs_[kept] = highs_[i], features_[kept] = features_[i];
      kept += highs_[i] > kth_largest_;
    }
    count_ = kept;
    // with many ties, grow rather than prune at every call
    if (2 * count_ > capacity_) capacity_ = 2 * count_ + 64;
  }

  int64_t k_ = 0, capacity_ = 0, count_ = 0;
  float kth_largest_ = 0;
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

// What to keep of each token: its k largest above 0 or, with k = 0, all above the features' floors.
struct Selection {
  int64_t k;
  const float* floors;  // [features], read with k = 0
};

inline void exact_values(const Encoder& encoder, const float* x, const Candidates& candidates, int64_t count,
                         std::vector<Exact>& out) {
  out.clear();
  const auto add = [&](float product, int32_t f) {
    const float value = product + (encoder.bias ? encoder.bias[f] : 0.0f);
    // NaN cannot be ordered; infinity makes the loss non-finite just as well
    out.push_back({std::isnan(value) ? std::numeric_limits<float>::infinity() : value, f});
  };
  // always four at a time, so that a value's bits do not depend on the other candidates
  for (int64_t c = 0; c < count; c += 4) {
    const int64_t last = std::min<int64_t>(4, count - c) - 1;
    const float* four[4];
    float products[4];
    for (int64_t j = 0; j < 4; j++) four[j] = encoder.row(candidates.feature(c + std::min(j, last)));
    dot_rows(x, four, encoder.width, products);
    for (int64_t j = 0; j <= last; j++) add(products[j], candidates.feature(c + j));
  }
}

// Keeps the selected exact values in order of feature. With k > 0 there are exactly k, padded with zeros.
inline void keep_selected(const Selection& selection, std::vector<Exact>& exact) {
  if (selection.k) {
    const size_t k = static_cast<size_t>(selection.k);
    exact.erase(std::remove_if(exact.begin(), exact.end(), [](const Exact& e) { return !(e.value > 0); }), exact.end());
    if (exact.size() > k) {
      std::nth_element(exact.begin(), exact.begin() + (k - 1), exact.end(), larger);
      exact.resize(k);
    }
  } else {
    const float* floors = selection.floors;
    exact.erase(std::remove_if(exact.begin(), exact.end(),
                               [floors](const Exact& e) { return !(e.value > floors[e.feature]); }),
                exact.end());
  }
  std::sort(exact.begin(), exact.end(), [](const Exact& a, const Exact& b) { return a.feature < b.feature; });
  if (selection.k) exact.resize(static_cast<size_t>(selection.k), Exact{0.0f, 0});
}
