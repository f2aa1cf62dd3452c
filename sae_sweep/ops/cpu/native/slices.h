// Sparse products that use each dense row many times. They go through the dense matrix in slices of 16 columns: a
// packed slice of all rows stays in a core's own cache. Each thread packs its own copy.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

constexpr int64_t kSlice = 16;           // columns per slice: one row is one cache line
constexpr int64_t kReuse = 8;            // packing pays from this many non-zeros per dense row
constexpr int64_t kSliceRows = 1 << 13;  // a slice of so many dense rows is half a megabyte

inline bool packing_pays(int64_t nnz, int64_t dense_rows, int64_t width) {
  return width >= 2 * kSlice && dense_rows <= kSliceRows && nnz >= kReuse * dense_rows;
}

// Copies columns [first, first + count) of all dense rows, padded with zeros to 16.
inline void pack_slice(const float* dense, int64_t rows, int64_t width, int64_t first, int64_t count, float* out) {
  for (int64_t r = 0; r < rows; r++, out += kSlice) {
    const float* from = dense + r * width + first;
    if (count == kSlice) {
      std::memcpy(out, from, sizeof(float) * kSlice);
    } else {
      std::memcpy(out, from, sizeof(float) * count);
      std::fill(out + count, out + kSlice, 0.0f);
    }
  }
}

struct Sums {
  __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
  void add(const float* row, float value) {
    const __m256 v = _mm256_set1_ps(value);
    low = _mm256_fmadd_ps(v, _mm256_load_ps(row), low);
    high = _mm256_fmadd_ps(v, _mm256_load_ps(row + 8), high);
  }
};

inline void spmm_slice(const float* slice, const int32_t* indices, const float* values, int64_t nnz, int64_t count,
                       float* out) {
  Sums sums[4];
  int64_t p = 0;
  for (; p + 4 <= nnz; p += 4)
    for (int j = 0; j < 4; j++) sums[j].add(slice + indices[p + j] * kSlice, values[p + j]);
  for (; p < nnz; p++) sums[0].add(slice + indices[p] * kSlice, values[p]);
  const auto four = [](__m256 a, __m256 b, __m256 c, __m256 d) {
    return _mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d));
  };
  alignas(32) float total[kSlice];
  _mm256_store_ps(total, four(sums[0].low, sums[1].low, sums[2].low, sums[3].low));
  _mm256_store_ps(total + 8, four(sums[0].high, sums[1].high, sums[2].high, sums[3].high));
  std::memcpy(out, total, 4 * count);
}

// `spmm` through packed slices in `buffer` [threads, columns, kSlice], aligned to cache lines.
inline void spmm_packed(const int64_t* offsets, const int32_t* indices, const float* values, int64_t rows,
                           int64_t columns, const float* dense, int64_t width, float* buffer, float* out) {
#pragma omp parallel
  {
    float* slice = buffer + omp_get_thread_num() * columns * kSlice;
    for (int64_t first = 0; first < width; first += kSlice) {
      const int64_t count = std::min(kSlice, width - first);
      pack_slice(dense, columns, width, first, count, slice);
#pragma omp for schedule(dynamic, 32) nowait
      for (int64_t r = 0; r < rows; r++) {
        const int64_t p = offsets[r];
        spmm_slice(slice, indices + p, values + p, offsets[r + 1] - p, count, out + r * width + first);
      }
    }
  }
}

inline float horizontal_sum(__m256 a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// The horizontal sums of four vectors.
inline __m128 horizontal_sums(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 each = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(each), _mm256_extractf128_ps(each, 1));
}

// `sddmm` through packed slices in `buffer`, as above.
inline void sddmm_packed(const int64_t* offsets, const int32_t* indices, int64_t rows, int64_t columns,
                            const float* left, const float* right, int64_t width, float* buffer, float* out) {
#pragma omp parallel
  {
    float* slice = buffer + omp_get_thread_num() * columns * kSlice;
    for (int64_t first = 0; first < width; first += kSlice) {
      const int64_t count = std::min(kSlice, width - first);
      pack_slice(right, columns, width, first, count, slice);
      // static: the same thread adds to an output in every slice
#pragma omp for schedule(static) nowait
      for (int64_t r = 0; r < rows; r++) {
        float own[kSlice] = {};
        std::memcpy(own, left + r * width + first, 4 * count);
        const __m256 low = _mm256_loadu_ps(own), high = _mm256_loadu_ps(own + 8);
        const auto product = [&](int64_t p) {
          const float* row = slice + indices[p] * kSlice;
          return _mm256_fmadd_ps(high, _mm256_load_ps(row + 8), _mm256_mul_ps(low, _mm256_load_ps(row)));
        };
        int64_t p = offsets[r];
        for (; p + 4 <= offsets[r + 1]; p += 4) {
          const __m128 four = horizontal_sums(product(p), product(p + 1), product(p + 2), product(p + 3));
          _mm_storeu_ps(out + p, first ? _mm_add_ps(_mm_loadu_ps(out + p), four) : four);
        }
        for (; p < offsets[r + 1]; p++) out[p] = (first ? out[p] : 0.0f) + horizontal_sum(product(p));
      }
    }
  }
}
#endif
