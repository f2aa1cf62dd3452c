// The encoder's dense product in 16-bit integers, with an error bound that tells which features are candidates.
//
// Each row is scaled so that its numbers fit 16 bits and its norm is at most kNorm; by Cauchy-Schwarz no sum of
// products then overflows 32 bits. Rounding changes a number by at most half a step, and so the product of rows x and w
// by at most (|x| step(w) + |w| step(x)) sqrt(width) / 2 <= norm_bound(x) norm_bound(w) sqrt(width) / kNorm, where
// norm_bound = kNorm step >= norm. Sums with a bias are rounded once more, as the exact ones are.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "candidates.h"
#include "vectors.h"

constexpr int64_t kBlock = 120;  // tokens that a thread screens together; a multiple of kRows
constexpr float kNorm = 46000.0f;

// Bound of a product's error, relative to the product of both norm bounds.
inline float relative_error_bound(int64_t width) { return 1.05f * std::sqrt(static_cast<float>(width)) / kNorm; }

// Rounds a row to multiples of `step`. An infinite `norm_bound` means that nothing is known of its products.
inline void quantise(const float* row, int64_t width, int64_t padded, int16_t* out, float* step, float* norm_bound) {
  float most = 0, squares = 0;
#pragma omp simd reduction(max : most) reduction(+ : squares)
  for (int64_t i = 0; i < width; i++) {
    most = std::max(most, std::fabs(row[i]));
    squares += row[i] * row[i];
  }
  *step = *norm_bound = 0;
  if (std::isfinite(squares) && squares > kTinySquares) {
    *step = std::max(most / 32767.0f, std::sqrt(squares) / kNorm);
    *norm_bound = kNorm * *step;
  } else if (squares != 0 || most != 0) {
    *norm_bound = std::numeric_limits<float>::infinity();
  }
  const float scale = *step > 0 ? 1.0f / *step : 0.0f;
#pragma omp simd
  for (int64_t i = 0; i < width; i++) out[i] = static_cast<int16_t>(static_cast<int32_t>(std::rint(row[i] * scale)));
  std::fill(out + width, out + padded, static_cast<int16_t>(0));
}

#if defined(__AVX2__)
#if defined(__AVX512BW__)
constexpr int kRows = 12;            // tokens per tile; all its sums are in registers
#else
constexpr int kRows = 5;
#endif
constexpr int kPanel = 2 * kLanes;   // features per tile
static_assert(kBlock % kRows == 0);

// An encoder's rows in 16 bits, kPanel per panel.
struct Panels {
  const int32_t* pairs;     // [panels, pairs, kPanel], two weights per number
  const float* steps;       // [panels * kPanel]
  const float* norm_bounds;     // [panels * kPanel]
  const int32_t* features;  // [panels * kPanel], -1 in an empty slot
};

// out [kRows, kPanel] = x [pairs, kRows] times weights [pairs, kPanel], in units of both steps.
inline void multiply_tile(const int32_t* x, const int32_t* weights, int64_t pairs, float* out) {
  Ints sums[kRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; r++) sums[r][0] = sums[r][1] = zero();
#pragma GCC unroll 2
  for (int64_t h = 0; h < pairs; h++) {
    const Ints first = load(weights + h * kPanel), second = load(weights + h * kPanel + kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; r++) {
      const Ints pair = broadcast(x[h * kRows + r]);
      sums[r][0] = add_products(sums[r][0], pair, first);
      sums[r][1] = add_products(sums[r][1], pair, second);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; r++) {
    store(out + r * kPanel, to_floats(sums[r][0]));
    store(out + r * kPanel + kLanes, to_floats(sums[r][1]));
  }
}

// A block of tokens in 16 bits: [tiles, pairs, kRows].
struct Block {
  explicit Block(int64_t width)
      : pairs((width + 1) / 2), row(2 * pairs), x(kBlock * pairs), steps(kBlock), norm_bounds(kBlock) {}
  void fill(const float* tokens, int64_t count, int64_t width) {
    tiles = (count + kRows - 1) / kRows;
    for (int64_t i = 0; i < tiles * kRows; i++) {
      std::fill(row.begin(), row.end(), static_cast<int16_t>(0));
      steps[i] = norm_bounds[i] = 0;
      if (i < count) quantise(tokens + i * width, width, 2 * pairs, row.data(), &steps[i], &norm_bounds[i]);
      int32_t* tile = x.data() + i / kRows * pairs * kRows + i % kRows;
      for (int64_t h = 0; h < pairs; h++) std::memcpy(tile + h * kRows, row.data() + 2 * h, 4);
    }
  }
  int64_t pairs, tiles = 0;
  std::vector<int16_t> row;
  std::vector<int32_t> x;
  std::vector<float> steps, norm_bounds;
};

// Multiplies the sums of one tile [kRows, kPanel] by both steps, in place.
inline void scale_tile(float* sums, const float* token_steps, const float* steps) {
  for (int64_t r = 0; r < kRows; r++)
    for (int half = 0; half < kPanel; half += kLanes) {
      float* z = sums + r * kPanel + half;
      store(z, multiply(load(z), multiply(load(steps + half), broadcast(token_steps[r]))));
    }
}

// Adds to each token's candidates the features whose product plus `shift` may exceed its k-th largest.
inline void screen_tile(const float* products, int64_t first_token, int64_t count, const Block& block,
                        const Panels& panels, const float* shift, float relative_error, int64_t panel,
                        std::vector<Candidates>& candidates, SelectBuffers& buffers) {
  for (int64_t r = 0; r < kRows && first_token + r < count; r++) {
    const int64_t t = first_token + r;
    const Floats error_per_norm = broadcast(relative_error * block.norm_bounds[t]);
    const Floats kth_largest = broadcast(candidates[t].kth_largest());
    for (int half = 0; half < kPanel; half += kLanes) {
      const int64_t slot = panel * kPanel + half;
      const Floats norm_bounds = load(panels.norm_bounds + slot);
      const Floats product = multiply_add(norm_bounds, error_per_norm, load(products + r * kPanel + half));
      const Floats high = add(product, load(shift + slot));
      // a token without a bound makes NaN of an empty slot, and NaN counts as not below
      if (const uint32_t hits = not_below(high, kth_largest))
        candidates[t].add(hits, high, multiply(norm_bounds, error_per_norm), load(panels.features + slot), buffers);
    }
  }
}
#endif
