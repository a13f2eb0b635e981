// What a product is made of: elements of A and B, their sums, and the multiply-add. Pairs of bf16 values
// are elements where the processor multiplies them: AVX512-BF16, or the BF16 extension of Armv8.
#pragma once

// Intrinsics are always inlined, so nothing of them can leak to other files.
#if defined(__AVX512BF16__)
#include <immintrin.h>
#define SEDE_PAIRS
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include <arm_neon.h>
#define SEDE_PAIRS
#endif

#include "simd.h"

namespace sede {
namespace SEDE_ISA {
namespace {

// One step of the inner dimension is one element (for bf16, one pair).
template <class T>
struct Arithmetic {
  using Sum = T;
  using Vec = typename Simd<T>::Vec;
  using SumVec = Vec;
  static SEDE_INLINE void add(SumVec& sum, T left, Vec right) { sum += left * right; }
  static SEDE_INLINE void dot(SumVec& sum, Vec left, Vec right) { sum += left * right; }
};

// Two bf16 values in one 32-bit lane.
enum class Pair : std::uint32_t {};
template <>
struct Simd<Pair> : Simd<float> {};

// Elements whose product has a tile of its own, which multiplies small matrices.
template <class T>
constexpr bool kMatrixSteps = false;
template <int R, int V, class T, class S>
void matrix_tile(const T* a, index_t a_row, index_t a_step, const T* b, index_t b_step, S* c,
                 index_t c_row, index_t steps, bool add);

#if defined(__AVX512BF16__)
template <>
struct Arithmetic<Pair> {
  using Sum = float;
  using Vec = __m512i;
  using SumVec = VecF;
  static SEDE_INLINE void add(SumVec& sum, Pair left, Vec right) {
    dot(sum, _mm512_set1_epi32(int(left)), right);
  }
  static SEDE_INLINE void dot(SumVec& sum, Vec left, Vec right) {
    sum = (VecF)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
  }
};
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
template <>
struct Arithmetic<Pair> {
  using Sum = float;
  using Vec = VecI;
  using SumVec = VecF;
  static SEDE_INLINE void add(SumVec& sum, Pair left, Vec right) {
    dot(sum, splat<Vec>(std::int32_t(left)), right);
  }
  static SEDE_INLINE void dot(SumVec& sum, Vec left, Vec right) {
    sum = (VecF)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)left, (bfloat16x8_t)right);
  }
};

// BFMMLA multiplies two rows of A by two columns of B over two pairs, in one instruction.
template <>
constexpr bool kMatrixSteps<Pair> = true;

// Lanes (x0, y0, x1, y1) and (x2, y2, x3, y3): two steps of two columns of B, or of two rows of A that
// lie beside each other.
SEDE_INLINE VecI zip_low(VecI x, VecI y) { return (VecI)vzip1q_s32((int32x4_t)x, (int32x4_t)y); }
SEDE_INLINE VecI zip_high(VecI x, VecI y) { return (VecI)vzip2q_s32((int32x4_t)x, (int32x4_t)y); }

// sum (rows 2r and 2r + 1, columns 2c and 2c + 1) += left right: the step at b, and the one b_step on,
// which is zero without BOTH.
template <int R, int V, bool BOTH = true>
SEDE_INLINE void matrix_step(VecF (*sum)[2 * V], const VecI* left, const Pair* b, index_t b_step) {
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    const VecI x = load<VecI>(b + v * 4);
    const VecI y = BOTH ? load<VecI>(b + b_step + v * 4) : VecI{};
    const VecI low = zip_low(x, y), high = zip_high(x, y);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      sum[r][2 * v] = (VecF)vbfmmlaq_f32((float32x4_t)sum[r][2 * v], (bfloat16x8_t)left[r],
                                         (bfloat16x8_t)low);
      sum[r][2 * v + 1] = (VecF)vbfmmlaq_f32((float32x4_t)sum[r][2 * v + 1], (bfloat16x8_t)left[r],
                                             (bfloat16x8_t)high);
    }
  }
}

// C (+)= A B as tile() of gemm.h, for R rows of V vectors.
template <int R, int V>
SEDE_INLINE void matrix_tile(const Pair* a, index_t a_row, index_t a_step, const Pair* b,
                             index_t b_step, float* c, index_t c_row, index_t steps, bool add) {
  constexpr int kPairs = (R + 1) / 2;
  VecF sum[kPairs][2 * V];
#pragma GCC unroll 8
  for (int r = 0; r < kPairs; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < 2 * V; ++v) sum[r][v] = VecF{};
  // Steps k and k + 1 of any strides, or the last one alone.
  auto take = [&](index_t k, auto both) {
    constexpr bool kBoth = decltype(both)::value;
    VecI left[kPairs];
#pragma GCC unroll 8
    for (int r = 0; r < kPairs; ++r) {
      auto at = [&](int row, int step) {
        return row < R && (step == 0 || kBoth) ? std::int32_t(a[row * a_row + (k + step) * a_step]) : 0;
      };
      left[r] = VecI{at(2 * r, 0), at(2 * r, 1), at(2 * r + 1, 0), at(2 * r + 1, 1)};
    }
    matrix_step<kPairs, V, kBoth>(sum, left, b + k * b_step, b_step);
  };
  const index_t whole = steps / 2 * 2;
  if (a_step == 1) {
    for (index_t k = 0; k < whole; k += 2) {
      VecI left[kPairs];
#pragma GCC unroll 8
      for (int r = 0; r < kPairs; ++r) {
        const int32x2_t first = load<int32x2_t>(a + 2 * r * a_row + k);
        left[r] = (VecI)vcombine_s32(
            first, 2 * r + 1 < R ? load<int32x2_t>(a + (2 * r + 1) * a_row + k) : vdup_n_s32(0));
      }
      matrix_step<kPairs, V>(sum, left, b + k * b_step, b_step);
    }
  } else if (R % 4 == 0 && a_row == 1) {
    for (index_t k = 0; k < whole; k += 2) {
      VecI left[kPairs];
#pragma GCC unroll 4
      for (int r = 0; r < R / 4; ++r) {
        const Pair* rows = a + k * a_step + 4 * r;
        const VecI x = load<VecI>(rows), y = load<VecI>(rows + a_step);
        left[2 * r] = zip_low(x, y);
        left[2 * r + 1] = zip_high(x, y);
      }
      matrix_step<kPairs, V>(sum, left, b + k * b_step, b_step);
    }
  } else {
    for (index_t k = 0; k < whole; k += 2) take(k, std::true_type());
  }
  if (whole < steps) take(whole, std::false_type());
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const int64x2_t low = (int64x2_t)sum[r / 2][2 * v], high = (int64x2_t)sum[r / 2][2 * v + 1];
      const VecF whole_row = (VecF)(r % 2 ? vzip2q_s64(low, high) : vzip1q_s64(low, high));
      float* out = c + r * c_row + v * 4;
      store(out, add ? load<VecF>(out) + whole_row : whole_row);
    }
}
#endif

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
