// Adam (Kingma and Ba 2015, algorithm 1), row by row, with what is done to decoder rows around it; and the rows of a
// batch, normalised.

#include <cmath>
#include <cstdint>

#include "rows.h"

extern "C" {

// gradient x `shrink` first; `tangent`: without its part along the row; `unit`: rows of norm 1 before (-1) or
// after (1) the step. `rate` and `root` hold the bias corrections: lr / (1 - b1^t) and sqrt(1 - b2^t).
void adam_rows(float* weights, const float* gradient, float* mean, float* square, int64_t rows, int64_t width,
               float beta1, float beta2, float rate, float root, float eps, float shrink, bool tangent, int unit) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; r++) {
    float* __restrict w = weights + r * width;
    const float* __restrict g = gradient + r * width;
    float* __restrict m = mean + r * width;
    float* __restrict v = square + r * width;
    if (unit < 0) {
      const float norm = std::sqrt(dot(w, w, width));
#pragma omp simd
      for (int64_t i = 0; i < width; i++) w[i] /= norm;
    }
    const float along = tangent ? shrink * dot(g, w, width) : 0.0f;
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
      const float step = shrink * g[i] - along * w[i];
      m[i] += (1 - beta1) * (step - m[i]);
      v[i] = beta2 * v[i] + (1 - beta2) * step * step;
      w[i] -= rate * m[i] / (std::sqrt(v[i]) / root + eps);
    }
    if (unit > 0) {
      const float norm = std::sqrt(dot(w, w, width));
#pragma omp simd
      for (int64_t i = 0; i < width; i++) w[i] /= norm;
    }
  }
}

// (x - mean) / (deviation + eps) of each row, with the unbiased deviation
void normalise_rows(const float* x, int64_t rows, int64_t width, float eps, float* out) {
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
