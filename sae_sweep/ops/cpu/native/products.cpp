// Sparse products, called through Python's ctypes; types and layout as in kernels.cpp.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "rows.h"
#include "slices.h"

extern "C" {

// Floats that the products below need as `buffer`, which must be aligned to a cache line; 0: they take null.
int64_t product_buffer_size(int64_t nnz, int64_t columns, int64_t width) noexcept {
#if defined(__AVX2__)
  if (packing_pays(nnz, columns, width)) return omp_get_max_threads() * columns * kSlice;
#endif
  return 0;
}

// Sparse times dense matrix: out[r] = sum over the row's non-zeros of value x dense[column].
void spmm(const int64_t* offsets, const int32_t* indices, const float* values, int64_t rows, int64_t columns,
          const float* dense, int64_t width, float* buffer, float* out) noexcept {
#if defined(__AVX2__)
  if (buffer) return spmm_packed(offsets, indices, values, rows, columns, dense, width, buffer, out);
#endif
#pragma omp parallel for schedule(dynamic, 16)
  for (int64_t r = 0; r < rows; r++) {
    float* sum = out + r * width;
    std::memset(sum, 0, 4 * width);
    const auto row = [&](int64_t p) { return dense + static_cast<int64_t>(indices[p]) * width; };
    const float* v = values;
    int64_t p = offsets[r];
    for (; p + 4 <= offsets[r + 1]; p += 4)
      add_rows(sum, row(p), row(p + 1), row(p + 2), row(p + 3), v[p], v[p + 1], v[p + 2], v[p + 3], width);
    for (; p < offsets[r + 1]; p++) add_row(sum, row(p), v[p], width);
  }
}

// Dense times dense matrix at the non-zeros of a pattern: out[p] = <left[row], right[column]>.
void sddmm(const int64_t* offsets, const int32_t* indices, int64_t rows, int64_t columns, const float* left,
           const float* right, int64_t width, float* buffer, float* out) noexcept {
#if defined(__AVX2__)
  if (buffer) return sddmm_packed(offsets, indices, rows, columns, left, right, width, buffer, out);
#endif
#pragma omp parallel for schedule(dynamic, 16)
  for (int64_t r = 0; r < rows; r++) {
    const auto row = [&](int64_t p) { return right + static_cast<int64_t>(indices[p]) * width; };
    int64_t p = offsets[r];
    for (; p + 4 <= offsets[r + 1]; p += 4) {
      const float* four[] = {row(p), row(p + 1), row(p + 2), row(p + 3)};
      dot_rows(left + r * width, four, width, out + p);
    }
    for (; p < offsets[r + 1]; p++) out[p] = dot(left + r * width, row(p), width);
  }
}

// CSR of [rows, columns] -> CSR of its transpose, and `permutation`: where each of its non-zeros was in the original.
// The rows are split into parts, one per thread; `next` [parts, columns] is scratch.
void transpose(const int64_t* offsets, const int32_t* indices, int64_t rows, int64_t columns, int64_t parts,
               int64_t* next, int64_t* out_offsets, int32_t* out_indices, int64_t* permutation) noexcept {
  const auto begin = [&](int64_t part) { return rows * part / parts; };
#pragma omp parallel for schedule(static)
  for (int64_t part = 0; part < parts; part++) {
    int64_t* counts = next + part * columns;
    std::fill(counts, counts + columns, 0);
    for (int64_t p = offsets[begin(part)]; p < offsets[begin(part + 1)]; p++) counts[indices[p]]++;
  }
  int64_t total = 0;
  for (int64_t c = 0; c < columns; c++) {
    out_offsets[c] = total;
    for (int64_t part = 0; part < parts; part++) {
      const int64_t count = next[part * columns + c];
      next[part * columns + c] = total;
      total += count;
    }
  }
  out_offsets[columns] = total;
#pragma omp parallel for schedule(static)
  for (int64_t part = 0; part < parts; part++)
    for (int64_t r = begin(part); r < begin(part + 1); r++)
      for (int64_t p = offsets[r]; p < offsets[r + 1]; p++) {
        const int64_t to = next[part * columns + indices[p]]++;
        out_indices[to] = static_cast<int32_t>(r);
        permutation[to] = p;
      }
}
}
