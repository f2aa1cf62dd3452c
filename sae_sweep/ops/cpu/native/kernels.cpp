// The encoder, screened in reduced precision, called through Python's ctypes.
//
// All floats are contiguous row-major float32. A sparse matrix is CSR: the non-zeros of row r are [offsets[r],
// offsets[r + 1]) of `indices` (columns, int32) and `values`. One thread computes each output number in a fixed order,
// so results do not depend on the number of threads. Nothing here is checked (Python did), and nothing is static, so
// several threads of Python may call at once.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "candidates.h"
#include "csr_builder.h"
#include "guard.h"
#include "rows.h"
#include "screen.h"
#include "select.h"

namespace {

// Widens row `t` of z [tokens, features], bfloat16 or float, to floats.
void read_row(const void* z, bool bfloat16, int64_t t, int64_t features, float* out) {
  if (!bfloat16) {
    std::memcpy(out, static_cast<const float*>(z) + t * features, 4 * features);
    return;
  }
  for (int64_t f = 0; f < features; f++) {
    const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(z)[t * features + f]) << 16;
    std::memcpy(&out[f], &bits, 4);
  }
}

// The norm of a row, or infinity if it is unreliable because its squares may have underflowed.
float norm_bound_of(const float* row, int64_t width) {
  const float squares = dot(row, row, width);
  const bool underflowed = squares < kTinySquares && has_numbers(row, width);
  return underflowed ? std::numeric_limits<float>::infinity() : std::sqrt(squares);
}

// Adds to a token's candidates the features whose estimate in `row` plus bias less floor may exceed its k-th largest.
// Not inlined, so that its arguments stay in registers.
__attribute__((noinline)) void screen_row(const float* row, float token_error, const float* norm_bounds,
                                          const float* bias, const float* floors, int64_t features,
                                          Candidates& candidates, SelectBuffers& buffers) {
  for (int64_t f = 0; f < features; f++) {
    const float z_error = token_error * norm_bounds[f];
    const float high = row[f] + (bias ? bias[f] : 0.0f) - (floors ? floors[f] : 0.0f) + z_error;
    if (!(high <= candidates.kth_largest())) candidates.add(high, z_error, static_cast<int32_t>(f), buffers);
  }
}

#if defined(__AVX2__)
// What is added to each slot's product before it is compared with 0: the bias less the floor.
std::vector<float> shifts(const Encoder& encoder, const Selection& selection, const int32_t* order, int64_t slots) {
  std::vector<float> shift(slots, -std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < slots; i++) {
    const int32_t f = order[i];
    if (f >= 0) shift[i] = (encoder.bias ? encoder.bias[f] : 0.0f) - (selection.k ? 0.0f : selection.floors[f]);
  }
  return shift;
}

// Copies the products of `rows` tokens with one panel to rows of `to`, `stride` apart.
void copy_tile(const float* products, int64_t rows, float* to, int64_t stride) {
  for (int64_t r = 0; r < rows; r++) std::memcpy(to + r * stride, products + r * kPanel, sizeof(float) * kPanel);
}
#endif

struct TopKScratch {
  std::vector<float> low, high;
  SelectBuffers buffers;
  std::vector<Exact> candidates;
};

}  // namespace

extern "C" {

// What the last function of this thread that returned `kFailed` said.
const char* failure() noexcept { return failure_text; }

// The number of non-zeros, or -1 if there were more than `max_nnz`.
int64_t csr_nnz(const CSRBuilder* csr) noexcept { return csr->too_many ? -1 : csr->nnz.load(); }

// Copies a CSR out, once.
void csr_export(CSRBuilder* csr, int64_t* offsets, int32_t* indices, float* values) noexcept {
  for (int64_t t = 0; t < csr->tokens; t++) csr->offsets[t + 1] += csr->offsets[t];
  std::copy(csr->offsets.begin(), csr->offsets.end(), offsets);
  const int64_t blocks = static_cast<int64_t>(csr->blocks.size());
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < blocks; b++) {
    int64_t to = csr->offsets[b * kBlock];
    for (const auto& exact : csr->blocks[b]) {
      indices[to] = exact.feature;
      values[to++] = exact.value;
    }
  }
}

// Frees a CSR, or does nothing for null.
void csr_free(CSRBuilder* csr) noexcept { delete csr; }

// Features per panel; 0 if this processor has no 16-bit screen.
int64_t panel_features() noexcept {
#if defined(__AVX2__)
  return kPanel;
#else
  return 0;
#endif
}

#if defined(__AVX2__)
// Packs the rows of weights listed in `order` [slots] (whole panels, -1 for an empty slot) into pairs [panels,
// (width + 1) / 2, kPanel], with their steps and norm_bounds [slots].
int pack(const float* weights, int64_t width, const int32_t* order, int64_t slots, int32_t* pairs, float* steps,
         float* norm_bounds) noexcept {
  const int64_t half = (width + 1) / 2;
  const auto pack_panel = [=](int64_t p, std::vector<int16_t>& row) {
    row.resize(2 * half);
    for (int64_t j = 0; j < kPanel; j++) {
      const int64_t slot = p * kPanel + j;
      steps[slot] = norm_bounds[slot] = 0;
      std::fill(row.begin(), row.end(), static_cast<int16_t>(0));
      if (order[slot] >= 0)
        quantise(weights + order[slot] * width, width, 2 * half, row.data(), steps + slot, norm_bounds + slot);
      for (int64_t h = 0; h < half; h++) std::memcpy(pairs + (p * half + h) * kPanel + j, row.data() + 2 * h, 4);
    }
  };
  return status_of([&] {
    LoopGuard guard;
#pragma omp parallel
    {
      std::vector<int16_t> row;
#pragma omp for schedule(static)
      for (int64_t p = 0; p < slots / kPanel; p++) guard.run([&] { pack_panel(p, row); });
    }
    guard.rethrow();
  });
}

// Encodes the rows of x into `out`: per row the k largest above 0 or, with k = 0, all above `floors`. Products with the
// features from slot `first_dead` on, which begins a panel, are kept in `estimates` [tokens, slots - first_dead]; their
// error is at most `error_per_norm` [tokens], written here, times the norm_bounds of their slots.
int encode_int16(const float* x, int64_t tokens, const float* weights, const float* bias, int64_t features,
                 int64_t width, const int32_t* pairs, const float* steps, const float* norm_bounds,
                 const int32_t* order, int64_t slots, int64_t k, const float* floors, int64_t max_nnz,
                 int64_t first_dead, float* estimates, float* error_per_norm, CSRBuilder** out) noexcept {
  const Encoder encoder{weights, bias, features, width};
  const Selection selection{k, floors};
  const Panels panels{pairs, steps, norm_bounds, order};
  const int64_t half = (width + 1) / 2, kept = slots - first_dead;
  const float relative_error = relative_error_bound(width);
  const auto encode_block = [=](int64_t first, const float* shift, CSRBuilder& csr, Block& block, Scratch& scratch) {
    float sums[kRows * kPanel];
    const int64_t count = std::min(kBlock, tokens - first);
    block.fill(x + first * width, count, width);
    for (int64_t i = 0; i < count; i++) scratch.candidates[i].start(k);
    for (int64_t i = 0; i < count && kept; i++) error_per_norm[first + i] = relative_error * block.norm_bounds[i];
    for (int64_t p = 0; p < slots / kPanel; p++)
      for (int64_t tile = 0; tile < block.tiles; tile++) {
        const int64_t row = tile * kRows;
        multiply_tile(block.x.data() + row * half, pairs + p * half * kPanel, half, sums);
        scale_tile(sums, block.steps.data() + row, steps + p * kPanel);
        screen_tile(sums, row, count, block, panels, shift, relative_error, p, scratch.candidates, scratch.select);
        if (p * kPanel >= first_dead)
          copy_tile(sums, std::min<int64_t>(kRows, count - row),
                    estimates + (first + row) * kept + p * kPanel - first_dead, kept);
      }
    append_block(csr, encoder, selection, x, first, count, max_nnz, scratch);
  };
  return status_of([&] {
    const std::vector<float> shift = shifts(encoder, selection, order, slots);
    auto csr = std::make_unique<CSRBuilder>(tokens);
    LoopGuard guard;
#pragma omp parallel
    {
      std::optional<Block> block;
      std::optional<Scratch> scratch;
#pragma omp for schedule(dynamic, 1)
      for (int64_t first = 0; first < tokens; first += kBlock)
        guard.run([&] {
          if (csr->too_many) return;
          if (!block) block.emplace(width), scratch.emplace();
          encode_block(first, shift.data(), *csr, *block, *scratch);
        });
    }
    guard.rethrow();
    *out = csr.release();
  });
}
#endif

// As `encode_int16`, screened by a dense product z [tokens, features] of x and the weights without the bias, in
// bfloat16 or float, whose error is at most `relative_error` |x| |w|. Products with the features `dead` [dead_count]
// are kept in `estimates` [tokens, dead_count], and `relative_error` |x| in `error_per_norm` [tokens].
int encode_from_dense(const void* z, bool bfloat16, float relative_error, const float* x, int64_t tokens,
                      const float* weights, const float* bias, int64_t features, int64_t width,
                      const float* norm_bounds, int64_t k, const float* floors, int64_t max_nnz, const int32_t* dead,
                      int64_t dead_count, float* estimates, float* error_per_norm, CSRBuilder** out) noexcept {
  const Encoder encoder{weights, bias, features, width};
  const Selection selection{k, floors};
  const auto encode_block = [=](int64_t first, CSRBuilder& csr, std::vector<float>& row, Scratch& scratch) {
    row.resize(features);
    const int64_t count = std::min(kBlock, tokens - first);
    for (int64_t i = 0; i < count; i++) {
      const int64_t t = first + i;
      const float token_error = relative_error * norm_bound_of(x + t * width, width);
      if (dead_count) error_per_norm[t] = token_error;
      read_row(z, bfloat16, t, features, row.data());
      for (int64_t j = 0; j < dead_count; j++) estimates[t * dead_count + j] = row[dead[j]];
      scratch.candidates[i].start(k);
      screen_row(row.data(), token_error, norm_bounds, bias, k ? nullptr : floors, features, scratch.candidates[i],
                 scratch.select);
    }
    append_block(csr, encoder, selection, x, first, count, max_nnz, scratch);
  };
  return status_of([&] {
    auto csr = std::make_unique<CSRBuilder>(tokens);
    LoopGuard guard;
#pragma omp parallel
    {
      std::optional<Scratch> scratch;
      std::vector<float> row;
#pragma omp for schedule(dynamic, 1)
      for (int64_t first = 0; first < tokens; first += kBlock)
        guard.run([&] {
          if (csr->too_many) return;
          if (!scratch) scratch.emplace();
          encode_block(first, *csr, row, *scratch);
        });
    }
    guard.rethrow();
    *out = csr.release();
  });
}

// All that may be among the k largest, of either sign, of estimate plus bias per token. The estimates are `columns`
// [count] of `estimates` [tokens, stride], with errors of at most norm_bounds [count] times error_per_norm [tokens].
int topk_candidates(const float* estimates, int64_t stride, const int32_t* columns, const float* bias,
                    const float* norm_bounds, int64_t count, const float* error_per_norm, int64_t tokens, int64_t k,
                    CSRBuilder** out) noexcept {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const auto add_token = [=](int64_t t, CSRBuilder& csr, TopKScratch& scratch) {
    auto& [low, high, buffers, candidates] = scratch;
    low.resize(count), high.resize(count);
    for (int64_t j = 0; j < count; j++) {
      const float z = estimates[t * stride + columns[j]] + (bias ? bias[j] : 0.0f);
      const float z_error = error_per_norm[t] * norm_bounds[j];
      low[j] = z - z_error;
      high[j] = z + z_error;
    }
    for (int64_t j = 0; j < count; j++) {
      const bool bounded = high[j] - low[j] < infinity;
      low[j] = bounded ? low[j] : -infinity;
      high[j] = bounded ? high[j] : infinity;
    }
    const float kth = kth_largest(low.data(), count, k, buffers);
    const int64_t passed = indices_at_least(high.data(), count, kth, buffers.indices);
    candidates.resize(passed);
    for (int64_t p = 0; p < passed; p++) candidates[p] = {high[buffers.indices[p]], buffers.indices[p]};
    append(csr, t / kBlock, t, candidates);
    csr.nnz += passed;
  };
  return status_of([&] {
    auto csr = std::make_unique<CSRBuilder>(tokens);
    LoopGuard guard;
#pragma omp parallel
    {
      TopKScratch scratch;
#pragma omp for schedule(dynamic, 1)
      for (int64_t first = 0; first < tokens; first += kBlock)
        guard.run([&] {
          for (int64_t t = first; t < std::min(first + kBlock, tokens); t++) add_token(t, *csr, scratch);
        });
    }
    guard.rethrow();
    *out = csr.release();
  });
}

// The k largest of each row of a CSR, of either sign, in order of column -> columns and values [rows, k].
int topk_csr_rows(const int64_t* offsets, const int32_t* indices, const float* values, int64_t rows, int64_t k,
                  int32_t* columns, float* out) noexcept {
  return status_of([&] {
    LoopGuard guard;
#pragma omp parallel
    {
      SelectBuffers buffers;
#pragma omp for schedule(static)
      for (int64_t r = 0; r < rows; r++)
        guard.run([&] {
          const int64_t p = offsets[r];
          keep_largest(values + p, indices + p, offsets[r + 1] - p, k, buffers, columns + r * k, out + r * k);
        });
    }
    guard.rethrow();
  });
}

// The k largest of each row of z, of either sign, in order of column -> columns and values [rows, k].
int topk_rows(const float* z, int64_t rows, int64_t width, int64_t k, int32_t* columns, float* values) noexcept {
  return status_of([&] {
    LoopGuard guard;
#pragma omp parallel
    {
      SelectBuffers buffers;
#pragma omp for schedule(static)
      for (int64_t r = 0; r < rows; r++)
        guard.run([&] { keep_largest(z + r * width, nullptr, width, k, buffers, columns + r * k, values + r * k); });
    }
    guard.rethrow();
  });
}
}
