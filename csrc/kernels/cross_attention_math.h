// Constants and functions of the region-word similarity, of all pairs and of chosen ones.
#pragma once

#include "convert.h"

namespace sede {
namespace SEDE_ISA {
namespace {

constexpr float kNormEps = 1e-8f, kCosineEps = 1e-8f, kLeak = 0.1f;
constexpr float kLog2E = 1.44269504088896341f;
// |context|^2 as a^T G a counts while what cancelled in it was at most so many times as large.
constexpr float kCancelled = 16.0f;

SEDE_INLINE VecF leaky(VecF s) { return s > 0.0f ? s : s * kLeak; }

SEDE_INLINE VecF root(VecF x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int n = 0; n < kLanes; ++n) lanes[n] = __builtin_sqrtf(lanes[n]);
  return load<VecF>(lanes);
}

// e^x for x <= 0, within an ulp: contexts that cancel show the last digit of each weight. Below the
// normal range: 0.
SEDE_INLINE VecF exp_near(VecF x) {
  const float magic = 12582912.0f + 127.0f;  // see exp2_fast
  const VecF shifted = x * kLog2E + magic, n = shifted - magic;
  // ln 2 in two parts, the first with zeros at its end, so that n times it is exact.
  const VecF f = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  VecF p = f * 1.393368836e-03f + 8.363205468e-03f;
  p = p * f + 4.166646457e-02f;
  p = p * f + 1.666657682e-01f;
  p = p * f + 5.000000014e-01f;
  p = f * f * p + f;
  const VecF scaled = (p + 1.0f) * (VecF)((VecI)shifted << 23);
  return x < -87.0f ? VecF{} : scaled;
}

// Sum of all lanes, half on half down to the four of the least vector.
template <int BYTES>
struct Lanes {
  typedef float Vec __attribute__((vector_size(BYTES), may_alias));
};
template <int BYTES>
SEDE_INLINE float total_of(const float* lanes) {
  using Half = typename Lanes<BYTES / 2>::Vec;
  const Half sum = load<Half>(lanes) + load<Half>(lanes + BYTES / 8);
  return total_of<BYTES / 2>((const float*)&sum);
}
template <>
SEDE_INLINE float total_of<16>(const float* lanes) {
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}
SEDE_INLINE float total(VecF x) { return total_of<SEDE_VEC_BYTES>((const float*)&x); }

// Two bounds of what a^T G a adds up, sum |a_i g_ik a_k|: reach^2 with reach = sum a_i |v_i|, and
// mass = sum a_i^2 sum_k |g_ik|. The first is close for sources that point the same way, the second
// for sources that are nearly orthogonal. NaN counts as kept.
SEDE_INLINE VecI cancels(VecF square, VecF reach, VecF mass) {
  const VecF across = reach * reach;
  return square * kCancelled < (across < mass ? across : mass);
}

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
