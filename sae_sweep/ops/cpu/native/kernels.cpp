// An SAE's encoder, screened in reduced precision, and the sparse products around it, for Python's ctypes.
//
// All floats are contiguous row-major float32. A code is CSR: the entries of token t are [offsets[t],
// offsets[t + 1]) of `indices` (features, int32) and `values`. Every output number is the work of one thread
// in a fixed order, so results do not depend on how many threads there are.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "candidates.h"
#include "csr_builder.h"
#include "rows.h"
#include "screen.h"
#include "select.h"
#include "slices.h"

extern "C" {

// Entries of a code, or -1 if there were more than `most` allowed.
int64_t code_entries(const Code* code) { return code->too_many ? -1 : code->entries.load(); }

// Copy a code out and free it; with null pointers only free it.
void code_take(Code* code, int64_t* offsets, int32_t* indices, float* values) {
  if (offsets) {
    for (int64_t t = 0; t < code->tokens; t++) code->offsets[t + 1] += code->offsets[t];
    std::copy(code->offsets.begin(), code->offsets.end(), offsets);
    const int64_t blocks = static_cast<int64_t>(code->blocks.size());
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
      int64_t place = code->offsets[b * kBlock];
      for (const auto& entry : code->blocks[b]) {
        indices[place] = entry.feature;
        values[place++] = entry.value;
      }
    }
  }
  delete code;
}

// Features of a panel; 0 where this processor has no 16-bit screen.
int64_t panel_features() {
#if defined(__AVX2__)
  return kPanel;
#else
  return 0;
#endif
}

#if defined(__AVX2__)
// The rows of weights that `order` [places, whole panels] names, -1 for none -> pairs [panels, (width + 1) / 2,
// kPanel], steps and reaches [places]
void pack(const float* weights, int64_t width, const int32_t* order, int64_t places, int32_t* pairs, float* steps,
          float* reaches) {
  const int64_t half = (width + 1) / 2;
#pragma omp parallel
  {
    std::vector<int16_t> row(2 * half);
#pragma omp for schedule(static)
    for (int64_t p = 0; p < places / kPanel; p++)
      for (int64_t j = 0; j < kPanel; j++) {
        const int64_t place = p * kPanel + j;
        steps[place] = reaches[place] = 0;
        std::fill(row.begin(), row.end(), static_cast<int16_t>(0));
        if (order[place] >= 0)
          quantise(weights + order[place] * width, width, 2 * half, row.data(), steps + place, reaches + place);
        for (int64_t h = 0; h < half; h++) std::memcpy(pairs + (p * half + h) * kPanel + j, row.data() + 2 * h, 4);
      }
  }
}

// The code of `tokens` rows of x: of each row the k largest above 0, or, with k = 0, all above `floors`. Products with
// the features from the place `watched` on, a whole panel, are kept in `estimates` [tokens, places - watched]; they
// are right to `token_reaches` [tokens], written here, times the reaches of their places.
Code* encode_packed(const float* x, int64_t tokens, const float* weights, const float* bias, int64_t features,
                    int64_t width, const int32_t* pairs, const float* steps, const float* reaches,
                    const int32_t* order, int64_t places, int64_t k, const float* floors, int64_t most,
                    int64_t watched, float* estimates, float* token_reaches) {
  const Encoder encoder{weights, bias, features, width};
  const Wanted wanted{k, floors};
  const Panels panels{pairs, steps, reaches, order};
  const int64_t half = (width + 1) / 2, kept = places - watched;
  const float share = error_share(width);
  // what the screen adds to a product before it compares with 0: the bias, less the floor
  std::vector<float> shift(places, -std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < places; i++) {
    const int32_t f = order[i];
    if (f >= 0) shift[i] = (bias ? bias[f] : 0.0f) - (k ? 0.0f : floors[f]);
  }
  auto* code = new Code(tokens);
#pragma omp parallel
  {
    Block block(width);
    Scratch scratch;
    float sums[kRows * kPanel];
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < tokens; first += kBlock) {
      if (code->too_many) continue;
      const int64_t count = std::min(kBlock, tokens - first);
      block.fill(x + first * width, count, width);
      for (int64_t i = 0; i < count; i++) scratch.candidates[i].start(k);
      for (int64_t i = 0; i < count && kept; i++) token_reaches[first + i] = share * block.reaches[i];
      for (int64_t p = 0; p < places / kPanel; p++)
        for (int64_t tile = 0; tile < block.tiles; tile++) {
          const int64_t row = tile * kRows;
          multiply_tile(block.x.data() + row * half, pairs + p * half * kPanel, half, sums);
          scale_tile(sums, block.steps.data() + row, steps + p * kPanel);
          screen_tile(sums, row, count, block, panels, shift.data(), share, p, scratch.candidates,
                      scratch.room);
          if (p * kPanel < watched) continue;
          float* to = estimates + (first + row) * kept + p * kPanel - watched;
          for (int64_t r = 0; r < kRows && row + r < count; r++)
            std::memcpy(to + r * kept, sums + r * kPanel, sizeof(float) * kPanel);
        }
      settle(*code, encoder, wanted, x, first, count, most, scratch);
    }
  }
  return code;
}
#endif

// As `encode_packed`, screened by `z`, products of x and the weights without the bias that are right to
// `share` |x| |w|; in bfloat16, or else in float. Those of the features `watched` are kept in `estimates`
// [tokens, watched_count], and share |x| in `token_reaches` [tokens].
Code* encode_screened(const void* z, bool bfloat16, float share, const float* x, int64_t tokens, const float* weights,
                      const float* bias, int64_t features, int64_t width, const float* norms, int64_t k,
                      const float* floors, int64_t most, const int32_t* watched, int64_t watched_count,
                      float* estimates, float* token_reaches) {
  const Encoder encoder{weights, bias, features, width};
  const Wanted wanted{k, floors};
  auto* code = new Code(tokens);
#pragma omp parallel
  {
    Scratch scratch;
    std::vector<float> row(features);
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < tokens; first += kBlock) {
      if (code->too_many) continue;
      const int64_t count = std::min(kBlock, tokens - first);
      for (int64_t i = 0; i < count; i++) {
        const int64_t t = first + i;
        const float squares = dot(x + t * width, x + t * width, width);
        const bool lost = squares < kTinySquares && has_numbers(x + t * width, width);
        const float reach = lost ? std::numeric_limits<float>::infinity() : share * std::sqrt(squares);
        if (watched_count) token_reaches[t] = reach;
        if (bfloat16)
          for (int64_t f = 0; f < features; f++) {
            const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(z)[t * features + f]) << 16;
            std::memcpy(&row[f], &bits, 4);
          }
        else
          std::memcpy(row.data(), static_cast<const float*>(z) + t * features, 4 * features);
        for (int64_t j = 0; j < watched_count; j++) estimates[t * watched_count + j] = row[watched[j]];
        Candidates& candidates = scratch.candidates[i];
        candidates.start(k);
        for (int64_t f = 0; f < features; f++) {
          const float slack = reach * norms[f];
          const float high = row[f] + (bias ? bias[f] : 0.0f) - (k ? 0.0f : floors[f]) + slack;
          if (!(high <= candidates.bar())) candidates.add(high, slack, static_cast<int32_t>(f), scratch.room);
        }
      }
      settle(*code, encoder, wanted, x, first, count, most, scratch);
    }
  }
  return code;
}

// Of each token's estimates [tokens, stride], those of `columns` [count] plus their bias: all that may be among the k
// largest, of either sign. Estimates are right to reaches [count] times token_reaches [tokens].
Code* doubtful(const float* estimates, int64_t stride, const int32_t* columns, const float* bias, const float* reaches,
               int64_t count, const float* token_reaches, int64_t tokens, int64_t k) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  auto* code = new Code(tokens);
#pragma omp parallel
  {
    std::vector<float> low(count), high(count);
    Room room;
    std::vector<Exact> found;
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < tokens; first += kBlock)
      for (int64_t t = first; t < std::min(first + kBlock, tokens); t++) {
        for (int64_t j = 0; j < count; j++) {
          const float z = estimates[t * stride + columns[j]] + (bias ? bias[j] : 0.0f);
          const float slack = token_reaches[t] * reaches[j];
          low[j] = z - slack;
          high[j] = z + slack;
        }
        for (int64_t j = 0; j < count; j++) {
          const bool known = high[j] - low[j] < infinity;
          low[j] = known ? low[j] : -infinity;
          high[j] = known ? high[j] : infinity;
        }
        const float kth = kth_largest(low.data(), count, k, room);
        const int64_t passed = places_from(high.data(), count, kth, room.places);
        found.resize(passed);
        for (int64_t p = 0; p < passed; p++) found[p] = {high[room.places[p]], room.places[p]};
        append(*code, first / kBlock, t, found);
        code->entries += static_cast<int64_t>(found.size());
      }
  }
  return code;
}

// The k largest of each row of a code, of either sign, in order of column -> columns and values [rows, k].
void largest_entries(const int64_t* offsets, const int32_t* indices, const float* values, int64_t rows, int64_t k,
                     int32_t* columns, float* out) {
#pragma omp parallel
  {
    Room room;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
      const int64_t p = offsets[r];
      keep_largest(values + p, indices + p, offsets[r + 1] - p, k, room, columns + r * k, out + r * k);
    }
  }
}

// The k largest of each row of z, of either sign, in order of column -> columns and values [rows, k].
void topk_rows(const float* z, int64_t rows, int64_t width, int64_t k, int32_t* columns, float* values) {
#pragma omp parallel
  {
    Room room;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++)
      keep_largest(z + r * width, nullptr, width, k, room, columns + r * k, values + r * k);
  }
}

// ---------------------------------------------------------------------------------------------------------
// Sparse products.

// Floats of room that the products below need for so many entries; the room begins a line of the cache.
int64_t product_room(int64_t entries, int64_t columns, int64_t width) {
#if defined(__AVX2__)
  if (packing_pays(entries, columns, width)) return omp_get_max_threads() * columns * kSlice;
#endif
  return 0;
}

// out[r] = sum over the row's entries of value x dense[index]
void combine_rows(const int64_t* offsets, const int32_t* indices, const float* values, int64_t rows, int64_t columns,
                  const float* dense, int64_t width, float* room, float* out) {
#if defined(__AVX2__)
  if (room) return combine_packed(offsets, indices, values, rows, columns, dense, width, room, out);
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

// out[entry] = <left[row of the entry], right[index of the entry]>
void entry_products(const int64_t* offsets, const int32_t* indices, int64_t rows, int64_t columns, const float* left,
                    const float* right, int64_t width, float* room, float* out) {
#if defined(__AVX2__)
  if (room) return products_packed(offsets, indices, rows, columns, left, right, width, room, out);
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

// CSR of [rows, columns] -> CSR of its transpose, and the place of each of its entries in the original. `next`
// [parts, columns]: the rows are cut into parts, for a thread each.
void transpose(const int64_t* offsets, const int32_t* indices, int64_t rows, int64_t columns, int64_t parts,
               int64_t* next, int64_t* out_offsets, int32_t* out_indices, int64_t* places) {
  const auto cut = [&](int64_t part) { return rows * part / parts; };
#pragma omp parallel for schedule(static)
  for (int64_t part = 0; part < parts; part++) {
    int64_t* counts = next + part * columns;
    std::fill(counts, counts + columns, 0);
    for (int64_t p = offsets[cut(part)]; p < offsets[cut(part + 1)]; p++) counts[indices[p]]++;
  }
  int64_t place = 0;
  for (int64_t c = 0; c < columns; c++) {
    out_offsets[c] = place;
    for (int64_t part = 0; part < parts; part++) {
      const int64_t count = next[part * columns + c];
      next[part * columns + c] = place;
      place += count;
    }
  }
  out_offsets[columns] = place;
#pragma omp parallel for schedule(static)
  for (int64_t part = 0; part < parts; part++)
    for (int64_t r = cut(part); r < cut(part + 1); r++)
      for (int64_t p = offsets[r]; p < offsets[r + 1]; p++) {
        const int64_t to = next[part * columns + indices[p]]++;
        out_indices[to] = static_cast<int32_t>(r);
        places[to] = p;
      }
}
}
