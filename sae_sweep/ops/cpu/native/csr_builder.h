// A CSR matrix under construction: the non-zeros of each block of tokens, joined by `csr_export`.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "candidates.h"
#include "screen.h"

struct CSRBuilder {
  int64_t tokens;
  std::vector<int64_t> offsets;
  std::vector<std::vector<Exact>> blocks;
  std::atomic<int64_t> nnz{0};
  std::atomic<bool> too_many{false};
  explicit CSRBuilder(int64_t n) : tokens(n), offsets(n + 1, 0), blocks((n + kBlock - 1) / kBlock) {}
};

inline void append(CSRBuilder& csr, int64_t block, int64_t token, const std::vector<Exact>& exact) {
  auto& to = csr.blocks[block];
  to.insert(to.end(), exact.begin(), exact.end());
  csr.offsets[token + 1] = static_cast<int64_t>(exact.size());
}

struct Scratch {
  std::vector<Candidates> candidates{kBlock};
  std::vector<Exact> exact;
  SelectBuffers select;
};

// Appends the exact selection from the candidates of tokens [first, first + count).
inline void append_block(CSRBuilder& csr, const Encoder& encoder, const Selection& selection, const float* x,
                         int64_t first, int64_t count, int64_t max_nnz, Scratch& scratch) {
  int64_t added = 0;
  for (int64_t i = 0; i < count; i++) {
    Candidates& candidates = scratch.candidates[i];
    const int64_t candidate_count = candidates.finish(scratch.select);
    exact_values(encoder, x + (first + i) * encoder.width, candidates, candidate_count, scratch.exact);
    keep_selected(selection, scratch.exact);
    append(csr, first / kBlock, first + i, scratch.exact);
    added += static_cast<int64_t>(scratch.exact.size());
  }
  if ((csr.nnz += added) > max_nnz) csr.too_many = true;
}
