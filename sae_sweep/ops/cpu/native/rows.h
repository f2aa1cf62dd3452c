// Sums of rows and dot products with rows, four at a time so that each load is used more than once.
#pragma once

#include <cstdint>

inline void add_rows(float* __restrict out, const float* a, const float* b, const float* c, const float* d,
                     float wa, float wb, float wc, float wd, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; i++) out[i] += wa * a[i] + wb * b[i] + wc * c[i] + wd * d[i];
}

inline void add_row(float* __restrict out, const float* a, float wa, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; i++) out[i] += wa * a[i];
}

inline float dot(const float* a, const float* b, int64_t width) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; i++) sum += a[i] * b[i];
  return sum;
}

// Below this sum of squares, a row's norm is unreliable because squares may have underflowed. At or above it, the
// product of two norms does not underflow either.
constexpr float kTinySquares = 1e-28f;

inline bool has_numbers(const float* a, int64_t width) {
  bool found = false;
  for (int64_t i = 0; i < width; i++) found |= a[i] != 0;
  return found;
}

// out[j] = <a, b[j]>
inline void dot_rows(const float* a, const float* const b[4], int64_t width, float out[4]) {
  const float *b0 = b[0], *b1 = b[1], *b2 = b[2], *b3 = b[3];
  float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
  for (int64_t i = 0; i < width; i++) {
    s0 += a[i] * b0[i];
    s1 += a[i] * b1[i];
    s2 += a[i] * b2[i];
    s3 += a[i] * b3[i];
  }
  out[0] = s0, out[1] = s1, out[2] = s2, out[3] = s3;
}
