// Between lanes of different widths, where GCC's __builtin_convertvector goes through scalars.
// The intrinsics of <immintrin.h> are always inlined, so the rule of simd.h holds; their maskz forms
// spare GCC 12 a wrong warning.
#pragma once

#include "simd.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace sede {
namespace SEDE_ISA {
namespace {

constexpr index_t kLanes = Simd<float>::width;

SEDE_INLINE VecI lane_numbers() {
  VecI v{};
  for (int n = 0; n < kLanes; ++n) v[n] = n;
  return v;
}
SEDE_INLINE VecL long_lane_numbers() {
  VecL v{};
  for (int n = 0; n < kLanes / 2; ++n) v[n] = n;
  return v;
}
// Lanes that are `step` apart change places. The indices are an expression in vectors, which the
// compiler folds to constants; those that a loop sets one by one it builds at run time.
template <class V>
SEDE_INLINE V exchange(V v, int step) {
  return shuffle(v, lane_numbers() ^ step);
}
SEDE_INLINE VecD exchange(VecD v, int step) {
  return shuffle(v, long_lane_numbers() ^ std::int64_t(step));
}

// Half a vector of floats at p as doubles.
SEDE_INLINE VecD low_half(const float* p) {
#if defined(__AVX512F__)
  return (VecD)_mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(p));
#elif defined(__AVX2__)
  return (VecD)_mm256_cvtps_pd(_mm_loadu_ps(p));
#else
  VecD v{};
  for (int n = 0; n < kLanes / 2; ++n) v[n] = double(p[n]);
  return v;
#endif
}
SEDE_INLINE VecD high_half(const float* p) { return low_half(p + kLanes / 2); }
#if defined(__AVX512F__)
SEDE_INLINE VecD low_half(VecF v) {
  return (VecD)_mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, (__m512)v, 0));
}
SEDE_INLINE VecD high_half(VecF v) {
  return (VecD)_mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, (__m512)v, 1));
}
#else
SEDE_INLINE VecD low_half(VecF v) {
  float lanes[kLanes];
  store(lanes, v);
  return low_half(lanes);
}
SEDE_INLINE VecD high_half(VecF v) {
  float lanes[kLanes];
  store(lanes, v);
  return high_half(lanes);
}
#endif

SEDE_INLINE VecF square_root(VecF v) {
#if defined(__AVX512F__)
  return (VecF)_mm512_maskz_sqrt_ps(0xffff, (__m512)v);
#else
  float lanes[kLanes];
  store(lanes, v);
  for (float& x : lanes) x = __builtin_sqrtf(x);
  return load<VecF>(lanes);
#endif
}

// One byte a lane: 1 where the mask is set.
SEDE_INLINE void store_bytes(unsigned char* p, VecI mask) {
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)p, _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)(mask & 1)));
#elif defined(__AVX2__)
  const __m256i bits = (__m256i)(mask & 1);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(words, words));
#else
  for (int n = 0; n < kLanes; ++n) p[n] = (unsigned char)(mask[n] & 1);
#endif
}

// -1 in the lanes whose byte is not zero.
SEDE_INLINE VecI load_bytes(const unsigned char* p) {
#if defined(__AVX512F__)
  const VecI wide = (VecI)_mm512_maskz_cvtepi8_epi32(0xffff, _mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  const VecI wide = (VecI)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  VecI wide{};
  for (int n = 0; n < kLanes; ++n) wide[n] = p[n];
#endif
  return wide != 0;
}

// One bit a lane of a mask, the first lane's lowest.
SEDE_INLINE unsigned lane_bits(VecI mask) {
#if defined(__AVX512F__)
  return unsigned(_mm512_movepi32_mask((__m512i)mask));
#elif defined(__AVX2__)
  return unsigned(_mm256_movemask_ps((__m256)mask));
#else
  unsigned bits = 0;
  for (int n = 0; n < kLanes; ++n) bits |= unsigned(mask[n] & 1) << n;
  return bits;
#endif
}
SEDE_INLINE unsigned lane_bits(VecL mask) {
#if defined(__AVX512F__)
  return unsigned(_mm512_movepi64_mask((__m512i)mask));
#elif defined(__AVX2__)
  return unsigned(_mm256_movemask_pd((__m256d)mask));
#else
  unsigned bits = 0;
  for (int n = 0; n < kLanes / 2; ++n) bits |= unsigned(mask[n] & 1) << n;
  return bits;
#endif
}

// Sums of all lanes as a tree, in an order that does not depend on the values.
SEDE_INLINE double lane_sum(VecD v) {
#pragma GCC unroll 4
  for (int step = kLanes / 4; step > 0; step /= 2) {
    v += exchange(v, step);
  }
  return v[0];
}
SEDE_INLINE std::int32_t lane_sum(VecI v) {
#pragma GCC unroll 4
  for (int step = kLanes / 2; step > 0; step /= 2) {
    v += exchange(v, step);
  }
  return v[0];
}
// Lanes of a mask that are set.
SEDE_INLINE int count_set(VecI mask) {
#if defined(__AVX512F__)
  return __builtin_popcount(_mm512_movepi32_mask((__m512i)mask));
#elif defined(__AVX2__)
  return __builtin_popcount(unsigned(_mm256_movemask_ps((__m256)mask)));
#else
  return -lane_sum(mask);
#endif
}
SEDE_INLINE std::int32_t lane_least(VecI v) {
#pragma GCC unroll 4
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const VecI other = exchange(v, step);
    v = other < v ? other : v;
  }
  return v[0];
}
SEDE_INLINE float lane_greatest(VecF v) {
#pragma GCC unroll 4
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const VecF other = exchange(v, step);
    v = other > v ? other : v;
  }
  return v[0];
}
// Through memory, or the compiler keeps v there for all of its life.
SEDE_INLINE std::int32_t lane_min(VecI v) {
  std::int32_t lanes[kLanes];
  store(lanes, v);
  std::int32_t least = lanes[0];
  for (std::int32_t x : lanes) least = x < least ? x : least;
  return least;
}

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
