// The dense product of an encoder in 16-bit integers, exact enough to tell what may be wanted.
//
// Each row is scaled so that its entries fit 16 bits and its norm is at most kNorm; then by Cauchy-Schwarz no sum of
// products overflows 32 bits. Rounding moves entries by at most half a step, so it moves the product of rows x and w
// by at most (|x| step(w) + |w| step(x)) sqrt(width) / 2: no more than reach(x) reach(w) sqrt(width) / kNorm, where
// reach = kNorm step >= norm. Sums with a bias are rounded once more, as the exact ones are.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "candidates.h"
#include "vectors.h"

constexpr int64_t kBlock = 120;  // tokens that a thread screens at a time; a multiple of kRows
constexpr float kNorm = 46000.0f;

inline float error_share(int64_t width) { return 1.05f * std::sqrt(static_cast<float>(width)) / kNorm; }

inline void quantise(const float* row, int64_t width, int64_t padded, int16_t* out, float* step, float* reach) {
  float most = 0, squares = 0;
#pragma omp simd reduction(max : most) reduction(+ : squares)
  for (int64_t i = 0; i < width; i++) {
    most = std::max(most, std::fabs(row[i]));
    squares += row[i] * row[i];
  }
  *step = *reach = 0;
  if (std::isfinite(squares) && squares > kTinySquares) {
    *step = std::max(most / 32767.0f, std::sqrt(squares) / kNorm);
    *reach = kNorm * *step;
  } else if (squares != 0 || most != 0) {
    *reach = std::numeric_limits<float>::infinity();  // everything is in doubt
  }
  const float scale = *step > 0 ? 1.0f / *step : 0.0f;
#pragma omp simd
  for (int64_t i = 0; i < width; i++) out[i] = static_cast<int16_t>(static_cast<int32_t>(std::rint(row[i] * scale)));
  std::fill(out + width, out + padded, static_cast<int16_t>(0));
}

#if defined(__AVX2__)
#if defined(__AVX512BW__)
constexpr int kRows = 12;            // tokens of a tile; all its sums are in registers
#else
constexpr int kRows = 5;
#endif
constexpr int kPanel = 2 * kLanes;   // features of a tile
static_assert(kBlock % kRows == 0);

// An encoder's rows in 16 bits, kPanel to a panel.
struct Panels {
  const int32_t* pairs;     // [panels, pairs of the width, kPanel], a pair of weights in each number
  const float* steps;       // [panels * kPanel]
  const float* reaches;     // [panels * kPanel]
  const int32_t* features;  // [panels * kPanel], -1 where there is none
};

// x: [pairs, kRows], weights: [pairs, kPanel] -> out: [kRows, kPanel] sums in units of both steps
inline void multiply_tile(const int32_t* x, const int32_t* weights, int64_t pairs, float* out) {
  Ints sums[kRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; r++) sums[r][0] = sums[r][1] = zero();
#pragma GCC unroll 2
  for (int64_t h = 0; h < pairs; h++) {
    const Ints first = load(weights + h * kPanel), second = load(weights + h * kPanel + kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; r++) {
      const Ints pair = spread(x[h * kRows + r]);
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
      : pairs((width + 1) / 2), row(2 * pairs), x(kBlock * pairs), steps(kBlock), reaches(kBlock) {}
  void fill(const float* tokens, int64_t count, int64_t width) {
    tiles = (count + kRows - 1) / kRows;
    for (int64_t i = 0; i < tiles * kRows; i++) {
      std::fill(row.begin(), row.end(), static_cast<int16_t>(0));
      steps[i] = reaches[i] = 0;
      if (i < count) quantise(tokens + i * width, width, 2 * pairs, row.data(), &steps[i], &reaches[i]);
      int32_t* tile = x.data() + i / kRows * pairs * kRows + i % kRows;
      for (int64_t h = 0; h < pairs; h++) std::memcpy(tile + h * kRows, row.data() + 2 * h, 4);
    }
  }
  int64_t pairs, tiles = 0;
  std::vector<int16_t> row;
  std::vector<int32_t> x;
  std::vector<float> steps, reaches;
};

// Sums of one tile in units of both steps -> products [kRows, kPanel], in place.
inline void scale_tile(float* sums, const float* token_steps, const float* steps) {
  for (int64_t r = 0; r < kRows; r++)
    for (int half = 0; half < kPanel; half += kLanes) {
      float* z = sums + r * kPanel + half;
      store(z, multiply(load(z), multiply(load(steps + half), spread(token_steps[r]))));
    }
}

// Compare the products of one tile, plus `shift`, with the tokens' bars; what may be above goes to the candidates.
inline void screen_tile(const float* products, int64_t first_token, int64_t count, const Block& block,
                        const Panels& panels, const float* shift, float share, int64_t panel,
                        std::vector<Candidates>& candidates, Room& room) {
  for (int64_t r = 0; r < kRows && first_token + r < count; r++) {
    const int64_t t = first_token + r;
    const Floats reach = spread(share * block.reaches[t]), bar = spread(candidates[t].bar());
    for (int half = 0; half < kPanel; half += kLanes) {
      const int64_t place = panel * kPanel + half;
      const Floats reaches = load(panels.reaches + place);
      const Floats z = multiply_add(reaches, reach, load(products + r * kPanel + half));
      const Floats high = add(z, load(shift + place));
      // a token without bound and an empty place make NaN, which is not below
      if (const uint32_t hits = not_below(high, bar))
        candidates[t].add(hits, high, multiply(reaches, reach), load(panels.features + place), room);
    }
  }
}
#endif
