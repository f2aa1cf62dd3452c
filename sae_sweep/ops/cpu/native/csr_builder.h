// A code while it is made: the entries of each block of tokens, put together in `code_take`.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "candidates.h"
#include "screen.h"

struct Code {
  int64_t tokens;
  std::vector<int64_t> offsets;
  std::vector<std::vector<Exact>> blocks;
  std::atomic<int64_t> entries{0};
  std::atomic<bool> too_many{false};
  explicit Code(int64_t n) : tokens(n), offsets(n + 1, 0), blocks((n + kBlock - 1) / kBlock) {}
};

inline void append(Code& code, int64_t block, int64_t token, const std::vector<Exact>& exact) {
  auto& entries = code.blocks[block];
  entries.insert(entries.end(), exact.begin(), exact.end());
  code.offsets[token + 1] = static_cast<int64_t>(exact.size());
}

struct Scratch {
  std::vector<Candidates> candidates{kBlock};
  std::vector<Exact> exact;
  Room room;
};

// Turn a block's candidates into entries of the code.
inline void settle(Code& code, const Encoder& encoder, const Wanted& wanted, const float* x, int64_t first,
                   int64_t count, int64_t most, Scratch& scratch) {
  int64_t added = 0;
  for (int64_t i = 0; i < count; i++) {
    Candidates& candidates = scratch.candidates[i];
    const int64_t found = candidates.finish(scratch.room);
    exact_values(encoder, x + (first + i) * encoder.width, candidates, found, scratch.exact);
    keep_wanted(wanted, scratch.exact);
    append(code, first / kBlock, first + i, scratch.exact);
    added += static_cast<int64_t>(scratch.exact.size());
  }
  if ((code.entries += added) > most) code.too_many = true;
}
