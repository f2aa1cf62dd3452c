// One set of names for this processor's vectors of 8 or 16 numbers. Masks have one bit per number.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>

#include <cstdint>

#if defined(__AVX512BW__)
using Ints = __m512i;
using Floats = __m512;
constexpr int kLanes = 16;
inline Ints zero() { return _mm512_setzero_si512(); }
inline Ints load(const int32_t* p) { return _mm512_loadu_si512(p); }
inline Ints broadcast(int32_t pair) { return _mm512_set1_epi32(pair); }
inline Ints add_products(Ints sum, Ints a, Ints b) { return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)); }
inline Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline Floats broadcast(float a) { return _mm512_set1_ps(a); }
inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats minimum(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline void store(float* p, Floats a) { _mm512_storeu_ps(p, a); }
inline Floats negative(Floats a) { return _mm512_sub_ps(_mm512_setzero_ps(), a); }
inline void compress(float* p, Floats a, uint32_t mask) { _mm512_mask_compressstoreu_ps(p, mask, a); }
inline void compress(int32_t* p, Ints a, uint32_t mask) { _mm512_mask_compressstoreu_epi32(p, mask, a); }
inline uint32_t not_below(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
inline uint32_t at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
#else
using Ints = __m256i;
using Floats = __m256;
constexpr int kLanes = 8;
inline Ints zero() { return _mm256_setzero_si256(); }
inline Ints load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Ints broadcast(int32_t pair) { return _mm256_set1_epi32(pair); }
inline Ints add_products(Ints sum, Ints a, Ints b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
inline Floats to_floats(Ints a) { return _mm256_cvtepi32_ps(a); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline Floats broadcast(float a) { return _mm256_set1_ps(a); }
inline Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats minimum(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats maximum(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline void store(float* p, Floats a) { _mm256_storeu_ps(p, a); }
inline Floats negative(Floats a) { return _mm256_sub_ps(_mm256_setzero_ps(), a); }

// The lanes of the set bits of each mask.
struct SetLanes {
  int32_t of[256][kLanes] = {};
  constexpr SetLanes() {
    for (int mask = 0; mask < 256; mask++)
      for (int lane = 0, next = 0; lane < kLanes; lane++)
        if (mask >> lane & 1) of[mask][next++] = lane;
  }
};
inline constexpr SetLanes kSetLanes;

// Writes the numbers whose mask bit is set, without gaps; all kLanes numbers at `p` may be overwritten.
inline void compress(float* p, Floats a, uint32_t mask) {
  _mm256_storeu_ps(p, _mm256_permutevar8x32_ps(a, load(kSetLanes.of[mask])));
}
inline void compress(int32_t* p, Ints a, uint32_t mask) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(a, load(kSetLanes.of[mask])));
}
inline uint32_t not_below(Floats a, Floats b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLE_UQ)));
}
inline uint32_t at_least(Floats a, Floats b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
}
#endif
#endif
