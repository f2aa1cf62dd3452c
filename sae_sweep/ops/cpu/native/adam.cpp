// Adam (Kingma and Ba 2015, algorithm 1) with decoder-row normalisation, and input normalisation; both row by row.

#include <cmath>
#include <cstdint>

#include "rows.h"

extern "C" {

// One Adam step. The gradient is multiplied by `gradient_scale` first. `tangent` removes its component along the row.
// `unit_rows` normalises rows before (-1) or after (1) the step, or never (0). `rate` and `root` include the bias
// corrections: lr / (1 - beta1^t) and sqrt(1 - beta2^t).
void adam_rows(float* weights, const float* gradient, float* mean, float* square, int64_t rows, int64_t width,
               float beta1, float beta2, float rate, float root, float eps, float gradient_scale, bool tangent,
               int unit_rows) noexcept {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    float* __restrict w = weights + r * width;
    const float* __restrict g = gradient + r * width;
    float* __restrict m = mean + r * width;
    float* __restrict v = square + r * width;
    if (unit_rows < 0) {
      const float norm = std::sqrt(dot(w, w, width));
#pragma omp simd
      for (int64_t i = 0; i < width; i++) w[i] /= norm;
    }
    const float along = tangent ? gradient_scale * dot(g, w, width) : 0.0f;
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
      const float step = gradient_scale * g[i] - along * w[i];
      m[i] += (1 - beta1) * (step - m[i]);
      v[i] = beta2 * v[i] + (1 - beta2) * step * step;
      w[i] -= rate * m[i] / (std::sqrt(v[i]) / root + eps);
    }
    if (unit_rows > 0) {
      const float norm = std::sqrt(dot(w, w, width));
#pragma omp simd
      for (int64_t i = 0; i < width; i++) w[i] /= norm;
    }
  }
}

// out = (x - mean) / (std + eps) per row, with the unbiased standard deviation.
void normalise_rows(const float* x, int64_t rows, int64_t width, float eps, float* out) noexcept {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    const float* __restrict from = x + r * width;
    float* __restrict to = out + r * width;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) sum += from[i];
    const float mean = sum / static_cast<float>(width);
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; i++) squares += (from[i] - mean) * (from[i] - mean);
    const float scale = std::sqrt(squares / static_cast<float>(width - 1)) + eps;
#pragma omp simd
    for (int64_t i = 0; i < width; i++) to[i] = (from[i] - mean) / scale;
  }
}
}
