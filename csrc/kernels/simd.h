// Vectors of SEDE_VEC_BYTES through the compiler's vector extension: one source for every
// instruction set. No standard header with inline code may be included here or in any kernel file:
// its functions would be compiled with this file's flags and could replace, at link time, the copy
// that a lesser processor must run. For the same reason everything lives in an unnamed namespace.
#pragma once

#include "api.h"

namespace sede {
namespace SEDE_ISA {
namespace {

typedef float VecF __attribute__((vector_size(SEDE_VEC_BYTES), may_alias));
typedef double VecD __attribute__((vector_size(SEDE_VEC_BYTES), may_alias));
typedef std::int32_t VecI __attribute__((vector_size(SEDE_VEC_BYTES), may_alias));
typedef std::int64_t VecL __attribute__((vector_size(SEDE_VEC_BYTES), may_alias));

template <class T>
struct Simd;
template <>
struct Simd<float> {
  using Vec = VecF;
  using Int = VecI;
  using Scalar = std::int32_t;
  static constexpr int width = SEDE_VEC_BYTES / 4;
};
template <>
struct Simd<double> {
  using Vec = VecD;
  using Int = VecL;
  using Scalar = std::int64_t;
  static constexpr int width = SEDE_VEC_BYTES / 8;
};

// Vectors in a panel of queries, and the rows of a register tile: chosen for the register file.
constexpr int kPanelVecs = 2;
#if defined(__AVX512F__) || defined(__aarch64__)  // 32 vector registers
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = 4;
#endif
template <class T>
constexpr int kPanel = kPanelVecs * Simd<T>::width;

#define SEDE_STRING_(x) #x
#define SEDE_STRING(x) SEDE_STRING_(x)
#define SEDE_INLINE inline __attribute__((always_inline))

template <class V, class S>
SEDE_INLINE V load(const S* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V, class S>
SEDE_INLINE void store(S* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}
template <class V, class S>
SEDE_INLINE V splat(S x) {
  return x - V{};
}

// Lane n of the result is lane indices[n] of v.
template <class V, class I>
SEDE_INLINE V shuffle(V v, I indices) {
#if defined(__clang__)
  return __builtin_shufflevector(v, indices);
#else
  return __builtin_shuffle(v, indices);
#endif
}

// Lane n of the result is lane indices[n] of x, or lane indices[n] - width of y.
template <class V, class I>
SEDE_INLINE V shuffle(V x, V y, I indices) {
#if defined(__clang__)
  constexpr int width = sizeof(V) / sizeof(x[0]);
  return indices < width ? shuffle(x, indices & (width - 1)) : shuffle(y, indices & (width - 1));
#else
  return __builtin_shuffle(x, y, indices);
#endif
}

template <class I>
SEDE_INLINE bool any(I mask) {
  VecL bits = (VecL)mask;
  std::int64_t all = 0;
  for (int n = 0; n < SEDE_VEC_BYTES / 8; ++n) all |= bits[n];
  return all != 0;
}

constexpr float kInfF = __builtin_inff();
template <class T>
constexpr T kNegInf = -T(kInfF);

// 2^x, relative error 8e-8 (minimax of degree 5 on [-1/2, 1/2]). Below the normal range: 0.
// NaN stays NaN: both comparisons are false for it.
SEDE_INLINE VecF exp2_fast(VecF x) {
  // 1.5 * 2^23 rounds to an integer when added; 127 more leaves a biased exponent in the low bits.
  const float magic = 12582912.0f + 127.0f;
  x = x > 128.0f ? splat<VecF>(128.0f) : x;
  VecF shifted = x + magic;
  VecI n = (VecI)shifted;
  VecF f = x - (shifted - magic);
  VecF p = f * 1.32764719596502475e-03f + 9.67554150262799756e-03f;
  p = p * f + 5.55071327506575438e-02f;
  p = p * f + 2.40221197207514753e-01f;
  p = p * f + 6.93146967062885366e-01f;
  p = p * f + 1.00000007165530080e+00f;
  VecF scaled = p * (VecF)(n << 23);  // a product, so that a NaN survives whatever n became
  return x < -126.0f ? VecF{} : scaled;
}

// 2^x in double by the Taylor series of degree 13 on [-1/2, 1/2] (remainder 4e-18).
SEDE_INLINE VecD exp2_fast(VecD x) {
  const double magic = 6755399441055744.0 + 1023.0;  // 1.5 * 2^52, and the exponent bias
  x = x > 1024.0 ? splat<VecD>(1024.0) : x;
  VecD shifted = x + magic;
  VecL n = (VecL)shifted;
  VecD f = (x - (shifted - magic)) * 0.693147180559945309417;
  VecD p = f * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
  p = p * f + 1.0 / 39916800.0;
  p = p * f + 1.0 / 3628800.0;
  p = p * f + 1.0 / 362880.0;
  p = p * f + 1.0 / 40320.0;
  p = p * f + 1.0 / 5040.0;
  p = p * f + 1.0 / 720.0;
  p = p * f + 1.0 / 120.0;
  p = p * f + 1.0 / 24.0;
  p = p * f + 1.0 / 6.0;
  p = p * f + 0.5;
  p = p * f + 1.0;
  p = p * f + 1.0;
  VecD scaled = p * (VecD)(n << 52);
  return x < -1022.0 ? VecD{} : scaled;
}

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
