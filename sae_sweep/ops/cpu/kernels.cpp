// The dense product of an SAE's encoder, screened in 16-bit integers, and the sparse products around it.
//
// All floats are contiguous row-major float32. A code is CSR: the entries of token t are [offsets[t],
// offsets[t + 1]) of `indices` (features, int32) and `values`. Every output number is the work of one thread
// in a fixed order, so results do not depend on how many threads there are.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

// ---------------------------------------------------------------------------------------------------------
// Rows: sums of rows, and dot products with rows, four at a time so that each load is used more than once.

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

// out[j] = <a, b[j]>; every product is summed in the same order as in `dot`
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

// ---------------------------------------------------------------------------------------------------------
// Candidates: with |z - estimate| <= slack known, everything that may be among the k largest, or above a floor.

struct Candidate {
  float low;   // what it is at least
  float high;  // what it is at most
  int32_t feature;
};

struct Exact {
  float value;
  int32_t feature;
};

inline bool larger(const Exact& a, const Exact& b) {
  return a.value > b.value || (a.value == b.value && a.feature < b.feature);
}

// The candidates of one token. With k > 0, `bar` rises to the k-th largest of what the candidates are at least.
class Candidates {
 public:
  void start(int64_t k, float bar) {
    k_ = k;
    bar_ = bar;
    room_ = static_cast<size_t>(k ? std::max<int64_t>(4 * k, k + 64) : 0);
    found_.clear();
  }
  float bar() const { return bar_; }
  // `high` is the estimate + slack; where either is no number, so may be the value
  void add(float high, float slack, int64_t feature) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    const bool known = std::isfinite(slack) && !std::isnan(high);
    found_.push_back({known ? high - 2 * slack : -infinity, known ? high : infinity, static_cast<int32_t>(feature)});
    if (room_ && found_.size() >= room_) raise_bar();
  }
  const std::vector<Candidate>& finish() {
    if (k_ && found_.size() > static_cast<size_t>(k_)) raise_bar();
    return found_;
  }

 private:
  void raise_bar() {
    lows_.clear();
    for (const auto& c : found_) lows_.push_back(c.low);
    std::nth_element(lows_.begin(), lows_.begin() + (k_ - 1), lows_.end(), std::greater<float>());
    const float kth = lows_[k_ - 1];
    // `bar_` excludes what equals it; what is tied with the k-th must stay
    const float below = std::nextafter(kth, -std::numeric_limits<float>::infinity());
    bar_ = std::max(bar_, below);
    const float bar = bar_;
    found_.erase(std::remove_if(found_.begin(), found_.end(), [bar](const Candidate& c) { return !(c.high > bar); }),
                 found_.end());
    // many ties: go on with more room rather than prune at every step
    if (2 * found_.size() > room_) room_ = 2 * found_.size() + 64;
  }

  int64_t k_ = 0;
  float bar_ = 0;
  size_t room_ = 0;
  std::vector<Candidate> found_;
  std::vector<float> lows_;
};

struct Encoder {
  const float* weights;  // [features, width]
  const float* bias;     // [features] or null
  int64_t features;
  int64_t width;
  const float* row(int64_t f) const { return weights + f * width; }
};

// What is wanted of each token: its k largest (of those above 0), or, with k = 0, all above the features' floors.
struct Wanted {
  int64_t k;
  const float* floors;  // [features], with k = 0
};

void exact_values(const Encoder& encoder, const float* x, const std::vector<Candidate>& candidates,
                  std::vector<Exact>& out) {
  out.clear();
  const auto add = [&](float product, int32_t f) {
    const float value = product + (encoder.bias ? encoder.bias[f] : 0.0f);
    // NaN cannot be ordered; infinity spoils the loss just as well
    out.push_back({std::isnan(value) ? std::numeric_limits<float>::infinity() : value, f});
  };
  size_t c = 0;
  for (; c + 4 <= candidates.size(); c += 4) {
    const float* four[4];
    float products[4];
    for (int j = 0; j < 4; j++) four[j] = encoder.row(candidates[c + j].feature);
    dot_rows(x, four, encoder.width, products);
    for (int j = 0; j < 4; j++) add(products[j], candidates[c + j].feature);
  }
  for (; c < candidates.size(); c++) {
    const int32_t f = candidates[c].feature;
    add(dot(x, encoder.row(f), encoder.width), f);
  }
}

// Keep what is wanted of the exact values, in order of feature; exactly k, filled up with zeros, if k > 0.
void keep_wanted(const Wanted& wanted, std::vector<Exact>& exact) {
  if (wanted.k) {
    const size_t k = static_cast<size_t>(wanted.k);
    exact.erase(std::remove_if(exact.begin(), exact.end(), [](const Exact& e) { return !(e.value > 0); }), exact.end());
    if (exact.size() > k) {
      std::nth_element(exact.begin(), exact.begin() + (k - 1), exact.end(), larger);
      exact.resize(k);
    }
  } else {
    const float* floors = wanted.floors;
    exact.erase(std::remove_if(exact.begin(), exact.end(),
                               [floors](const Exact& e) { return !(e.value > floors[e.feature]); }),
                exact.end());
  }
  std::sort(exact.begin(), exact.end(), [](const Exact& a, const Exact& b) { return a.feature < b.feature; });
  if (wanted.k) exact.resize(static_cast<size_t>(wanted.k), Exact{0.0f, 0});
}

// ---------------------------------------------------------------------------------------------------------
// Selection by the leading bits: numbers in an order-preserving form, counted in buckets.

constexpr int kBucketBits = 11;

inline uint32_t order_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return std::numeric_limits<uint32_t>::max();
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The k-th largest key, and how many keys equal to it are among the k largest.
uint32_t kth_largest(const std::vector<uint32_t>& keys, int64_t k, std::vector<uint32_t>& rest, int64_t* ties) {
  int64_t counts[1 << kBucketBits] = {};
  for (const uint32_t key : keys) counts[key >> (32 - kBucketBits)]++;
  uint32_t bucket = (1 << kBucketBits) - 1;
  int64_t left = k;
  while (counts[bucket] < left) left -= counts[bucket--];
  rest.clear();
  for (const uint32_t key : keys)
    if (key >> (32 - kBucketBits) == bucket) rest.push_back(key);
  std::nth_element(rest.begin(), rest.begin() + (left - 1), rest.end(), std::greater<uint32_t>());
  const uint32_t kth = rest[left - 1];
  *ties = left - std::count_if(rest.begin(), rest.begin() + left, [kth](uint32_t key) { return key > kth; });
  return kth;
}

// ---------------------------------------------------------------------------------------------------------
// A code while it is made: the entries of each block of tokens, put together in `take`.

constexpr int64_t kBlock = 120;  // tokens that a thread screens at a time; a multiple of kRows

struct Code {
  int64_t tokens;
  std::vector<int64_t> offsets;
  std::vector<std::vector<Exact>> blocks;
  std::atomic<int64_t> entries{0};
  std::atomic<bool> too_many{false};
  explicit Code(int64_t n) : tokens(n), offsets(n + 1, 0), blocks((n + kBlock - 1) / kBlock) {}
};

void append(Code& code, int64_t block, int64_t token, const std::vector<Exact>& exact) {
  auto& entries = code.blocks[block];
  entries.insert(entries.end(), exact.begin(), exact.end());
  code.offsets[token + 1] = static_cast<int64_t>(exact.size());
}

}  // namespace

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
}

namespace {

// ---------------------------------------------------------------------------------------------------------
// The screen in 16 bits. Each row is scaled so that its entries fit 16 bits and its norm is at most kNorm; then
// by Cauchy-Schwarz no sum of products overflows 32 bits, and rounding moves a product of rows x and w by at
// most |x| |w| sqrt(width) / kNorm (each factor's rounding error has norm <= sqrt(width) / 2 steps).

constexpr float kNorm = 46000.0f;

inline float error_share(int64_t width) { return 1.05f * std::sqrt(static_cast<float>(width)) / kNorm; }

void quantise(const float* row, int64_t width, int64_t padded, int16_t* out, float* step, float* norm) {
  float most = 0, squares = 0;
#pragma omp simd reduction(max : most) reduction(+ : squares)
  for (int64_t i = 0; i < width; i++) {
    most = std::max(most, std::fabs(row[i]));
    squares += row[i] * row[i];
  }
  *norm = std::sqrt(squares);
  const float scale = most > 0 && std::isfinite(squares) ? std::min(32767.0f / most, kNorm / *norm) : 0.0f;
  *step = scale > 0 ? 1.0f / scale : 0.0f;
#pragma omp simd
  for (int64_t i = 0; i < width; i++) out[i] = static_cast<int16_t>(static_cast<int32_t>(std::rint(row[i] * scale)));
  std::fill(out + width, out + padded, static_cast<int16_t>(0));
}

#if defined(__AVX512BW__) || defined(__AVX2__)
#if defined(__AVX512BW__)
using Ints = __m512i;
using Floats = __m512;
constexpr int kLanes = 16;
inline Ints zero() { return _mm512_setzero_si512(); }
inline Ints load(const int32_t* p) { return _mm512_loadu_si512(p); }
inline Ints spread(int32_t pair) { return _mm512_set1_epi32(pair); }
inline Ints multiply_add(Ints sum, Ints a, Ints b) { return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)); }
inline Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline Floats spread(float a) { return _mm512_set1_ps(a); }
inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline void store(float* p, Floats a) { _mm512_storeu_ps(p, a); }
inline uint32_t not_below(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
#else
using Ints = __m256i;
using Floats = __m256;
constexpr int kLanes = 8;
inline Ints zero() { return _mm256_setzero_si256(); }
inline Ints load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Ints spread(int32_t pair) { return _mm256_set1_epi32(pair); }
inline Ints multiply_add(Ints sum, Ints a, Ints b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
inline Floats to_floats(Ints a) { return _mm256_cvtepi32_ps(a); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline Floats spread(float a) { return _mm256_set1_ps(a); }
inline Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline void store(float* p, Floats a) { _mm256_storeu_ps(p, a); }
inline uint32_t not_below(Floats a, Floats b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLE_UQ)));
}
#endif

#if defined(__AVX512BW__)
constexpr int kRows = 12;            // tokens of a tile; all its sums are in registers
#else
constexpr int kRows = 5;
#endif
constexpr int kPanel = 2 * kLanes;   // features of a tile
static_assert(kBlock % kRows == 0);

struct Panels {
  const int32_t* pairs;  // [panels, pairs of the width, kPanel], a pair of 16-bit weights in each number
  const float* steps;    // [panels * kPanel]
  const float* norms;    // [panels * kPanel]
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
      sums[r][0] = multiply_add(sums[r][0], pair, first);
      sums[r][1] = multiply_add(sums[r][1], pair, second);
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
  explicit Block(int64_t width) : pairs((width + 1) / 2), row(2 * pairs), x(kBlock * pairs), steps(kBlock), norms(kBlock) {}
  void fill(const float* tokens, int64_t count, int64_t width) {
    tiles = (count + kRows - 1) / kRows;
    for (int64_t i = 0; i < tiles * kRows; i++) {
      std::fill(row.begin(), row.end(), static_cast<int16_t>(0));
      steps[i] = norms[i] = 0;
      if (i < count) quantise(tokens + i * width, width, 2 * pairs, row.data(), &steps[i], &norms[i]);
      int32_t* tile = x.data() + i / kRows * pairs * kRows + i % kRows;
      for (int64_t h = 0; h < pairs; h++) std::memcpy(tile + h * kRows, row.data() + 2 * h, 4);
    }
  }
  int64_t pairs, tiles = 0;
  std::vector<int16_t> row;
  std::vector<int32_t> x;
  std::vector<float> steps, norms;
};

// Compare one tile with the tokens' bars; what may be above goes to the candidates.
void screen_tile(const float* sums, int64_t first_token, int64_t count, const Block& block, const Panels& panels,
                 const float* bias, float share, int64_t panel, std::vector<Candidates>& candidates) {
  const int64_t f0 = panel * kPanel;
  for (int64_t r = 0; r < kRows && first_token + r < count; r++) {
    const int64_t t = first_token + r;
    const Floats step = spread(block.steps[t]), reach = spread(share * block.norms[t]), bar = spread(candidates[t].bar());
    uint32_t hits = 0;
    float high[kPanel];
    for (int half = 0; half < 2; half++) {
      const int64_t f = f0 + half * kLanes;
      const Floats z = multiply(load(sums + r * kPanel + half * kLanes), multiply(load(panels.steps + f), step));
      const Floats top = multiply_add(load(panels.norms + f), reach, z);
      const Floats shifted = multiply_add(load(bias + f), spread(1.0f), top);
      store(high + half * kLanes, shifted);
      hits |= not_below(shifted, bar) << (half * kLanes);
    }
    for (; hits; hits &= hits - 1) {
      const int j = __builtin_ctz(hits);
      candidates[t].add(high[j], share * block.norms[t] * panels.norms[f0 + j], f0 + j);
    }
  }
}
#endif

struct Scratch {
  std::vector<Candidates> candidates{kBlock};
  std::vector<Exact> exact;
};

// Turn a block's candidates into entries of the code.
void settle(Code& code, const Encoder& encoder, const Wanted& wanted, const float* x, int64_t first, int64_t count,
            int64_t most, Scratch& scratch) {
  int64_t added = 0;
  for (int64_t i = 0; i < count; i++) {
    exact_values(encoder, x + (first + i) * encoder.width, scratch.candidates[i].finish(), scratch.exact);
    keep_wanted(wanted, scratch.exact);
    append(code, first / kBlock, first + i, scratch.exact);
    added += static_cast<int64_t>(scratch.exact.size());
  }
  if ((code.entries += added) > most) code.too_many = true;
}

}  // namespace

extern "C" {

// Features of a panel; 0 where this processor has no 16-bit screen.
int64_t panel_features() {
#if defined(__AVX2__)
  return kPanel;
#else
  return 0;
#endif
}

#if defined(__AVX2__)
// weights [features, width] -> pairs [panels, (width + 1) / 2, kPanel], steps and norms [panels * kPanel]
void pack(const float* weights, int64_t features, int64_t width, int32_t* pairs, float* steps, float* norms) {
  const int64_t half = (width + 1) / 2, panels = (features + kPanel - 1) / kPanel;
#pragma omp parallel
  {
    std::vector<int16_t> row(2 * half);
#pragma omp for schedule(static)
    for (int64_t p = 0; p < panels; p++)
      for (int64_t j = 0; j < kPanel; j++) {
        const int64_t f = p * kPanel + j;
        steps[f] = norms[f] = 0;
        std::fill(row.begin(), row.end(), static_cast<int16_t>(0));
        if (f < features) quantise(weights + f * width, width, 2 * half, row.data(), steps + f, norms + f);
        for (int64_t h = 0; h < half; h++) std::memcpy(pairs + (p * half + h) * kPanel + j, row.data() + 2 * h, 4);
      }
  }
}

// The code of `tokens` rows of x: of each row the k largest above 0, or, with k = 0, all above `floors`.
Code* encode_packed(const float* x, int64_t tokens, const float* weights, const float* bias, int64_t features,
                    int64_t width, const int32_t* pairs, const float* steps, const float* norms, int64_t k,
                    const float* floors, int64_t most) {
  const Encoder encoder{weights, bias, features, width};
  const Wanted wanted{k, floors};
  const Panels panels{pairs, steps, norms};
  const int64_t panel_count = (features + kPanel - 1) / kPanel, half = (width + 1) / 2;
  const float share = error_share(width);
  // what the screen adds to a product before it compares with 0: the bias, less the floor
  std::vector<float> shift(panel_count * kPanel, -std::numeric_limits<float>::infinity());
  for (int64_t f = 0; f < features; f++) shift[f] = (bias ? bias[f] : 0.0f) - (k ? 0.0f : floors[f]);
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
      for (int64_t i = 0; i < count; i++) scratch.candidates[i].start(k, 0.0f);
      for (int64_t p = 0; p < panel_count; p++)
        for (int64_t tile = 0; tile < block.tiles; tile++) {
          multiply_tile(block.x.data() + tile * half * kRows, pairs + p * half * kPanel, half, sums);
          screen_tile(sums, tile * kRows, count, block, panels, shift.data(), share, p, scratch.candidates);
        }
      settle(*code, encoder, wanted, x, first, count, most, scratch);
    }
  }
  return code;
}
#endif

// As `encode_packed`, screened by `z`, products of x and the weights without the bias that are right to
// `share` |x| |w|; in bfloat16, or else in float.
Code* encode_screened(const void* z, bool bfloat16, float share, const float* x, int64_t tokens, const float* weights,
                      const float* bias, int64_t features, int64_t width, const float* norms, int64_t k,
                      const float* floors, int64_t most) {
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
        const float reach = share * std::sqrt(dot(x + t * width, x + t * width, width));
        if (bfloat16)
          for (int64_t f = 0; f < features; f++) {
            const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(z)[t * features + f]) << 16;
            std::memcpy(&row[f], &bits, 4);
          }
        else
          std::memcpy(row.data(), static_cast<const float*>(z) + t * features, 4 * features);
        Candidates& candidates = scratch.candidates[i];
        candidates.start(k, 0.0f);
        for (int64_t f = 0; f < features; f++) {
          const float slack = reach * norms[f];
          const float high = row[f] + (bias ? bias[f] : 0.0f) - (k ? 0.0f : floors[f]) + slack;
          if (!(high <= candidates.bar())) candidates.add(high, slack, f);
        }
      }
      settle(*code, encoder, wanted, x, first, count, most, scratch);
    }
  }
  return code;
}

// The k largest of each row of z, of either sign, in order of column -> columns and values [rows, k].
void topk_rows(const float* z, int64_t rows, int64_t width, int64_t k, int32_t* columns, float* values) {
#pragma omp parallel
  {
    std::vector<uint32_t> keys(width), rest;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
      const float* row = z + r * width;
      for (int64_t f = 0; f < width; f++) keys[f] = order_of(row[f]);
      int64_t ties;
      const uint32_t kth = kth_largest(keys, k, rest, &ties);
      int64_t place = r * k;
      for (int64_t f = 0; f < width; f++) {
        if (keys[f] < kth || (keys[f] == kth && ties-- <= 0)) continue;
        columns[place] = static_cast<int32_t>(f);
        values[place++] = std::isnan(row[f]) ? std::numeric_limits<float>::infinity() : row[f];
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------------
// Sparse products. `places` (or null: as they lie) says where the value of each entry is.

// out[r] = sum over the row's entries of value x dense[index]; where `onto`, added to what is there.
void combine_rows(const int64_t* offsets, const int32_t* indices, const int64_t* places, const float* values,
                  int64_t rows, const float* dense, int64_t width, bool onto, float* out) {
#pragma omp parallel for schedule(dynamic, 16)
  for (int64_t r = 0; r < rows; r++) {
    float* sum = out + r * width;
    if (!onto) std::memset(sum, 0, 4 * width);
    const auto value = [&](int64_t p) { return values[places ? places[p] : p]; };
    const auto row = [&](int64_t p) { return dense + static_cast<int64_t>(indices[p]) * width; };
    int64_t p = offsets[r];
    for (; p + 4 <= offsets[r + 1]; p += 4)
      add_rows(sum, row(p), row(p + 1), row(p + 2), row(p + 3), value(p), value(p + 1), value(p + 2), value(p + 3), width);
    for (; p < offsets[r + 1]; p++) add_row(sum, row(p), value(p), width);
  }
}

// out[entry] = <left[row of the entry], right[index of the entry]>
void entry_products(const int64_t* offsets, const int32_t* indices, int64_t rows, const float* left, const float* right,
                    int64_t width, float* out) {
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

// CSR of [rows, columns] -> CSR of its transpose, and the place of each of its entries in the original.
void transpose(const int64_t* offsets, const int32_t* indices, int64_t rows, int64_t columns, int64_t* out_offsets,
               int32_t* out_indices, int64_t* places) {
  std::fill(out_offsets, out_offsets + columns + 1, 0);
  for (int64_t p = 0; p < offsets[rows]; p++) out_offsets[indices[p] + 1]++;
  for (int64_t c = 0; c < columns; c++) out_offsets[c + 1] += out_offsets[c];
  std::vector<int64_t> next(out_offsets, out_offsets + columns);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t p = offsets[r]; p < offsets[r + 1]; p++) {
      const int64_t place = next[indices[p]]++;
      out_indices[place] = static_cast<int32_t>(r);
      places[place] = p;
    }
}

// ---------------------------------------------------------------------------------------------------------
// Adam (Kingma and Ba 2015, algorithm 1), row by row, with what is done to decoder rows around it.

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
