// Elements of any dtype as floats, and floats as operands of a product.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../args.h"

namespace sede_cuda {

using Bf16 = __nv_bfloat16;
using F16 = __half;

constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

template <class T>
__device__ __forceinline__ T operand(float x);
template <>
__device__ __forceinline__ float operand<float>(float x) { return x; }
template <>
__device__ __forceinline__ Bf16 operand<Bf16>(float x) { return __float2bfloat16_rn(x); }
template <>
__device__ __forceinline__ F16 operand<F16>(float x) { return __float2half_rn(x); }

__device__ __forceinline__ float number(float x) { return x; }
__device__ __forceinline__ float number(Bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float number(F16 x) { return __half2float(x); }
__device__ __forceinline__ float number(signed char x) { return float(x); }

// Two operands in a register, the first in the low half.
template <class T>
__device__ __forceinline__ unsigned pack(float low, float high);
template <>
__device__ __forceinline__ unsigned pack<Bf16>(float low, float high) {
  unsigned both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
template <>
__device__ __forceinline__ unsigned pack<F16>(float low, float high) {
  unsigned both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// The sum of both.
template <class T>
__device__ __forceinline__ float sum_of_two(unsigned both) {
  T low, high;
  *reinterpret_cast<unsigned short*>(&low) = (unsigned short)(both & 0xffff);
  *reinterpret_cast<unsigned short*>(&high) = (unsigned short)(both >> 16);
  return number(low) + number(high);
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// e^x within two units of the last digit; 0 below the normal numbers.
__device__ __forceinline__ float exponential(float x) {
  if (x < -104.f) return 0.f;
  if (x > 89.f) return infinity();
  const float k = rintf(x * kLog2e);
  const float rest = fmaf(k, 2.12194440e-4f, fmaf(k, -0.693359375f, x));  // x - k log 2
  return exp2_fast(rest * kLog2e) * exp2_fast(k);
}

__device__ __forceinline__ float element(const Matrix& m, index_t row, index_t col) {
  const index_t at = row * m.row_stride + col * m.col_stride;
  switch (m.dtype) {
    case f32: return static_cast<const float*>(m.data)[at];
    case bf16: return number(static_cast<const Bf16*>(m.data)[at]);
    case f16: return number(static_cast<const F16*>(m.data)[at]);
    default: return float(static_cast<const signed char*>(m.data)[at]);
  }
}

__device__ __forceinline__ void store(void* to, int dtype, index_t at, float x) {
  switch (dtype) {
    case f32: static_cast<float*>(to)[at] = x; break;
    case bf16: static_cast<Bf16*>(to)[at] = operand<Bf16>(x); break;
    case f16: static_cast<F16*>(to)[at] = operand<F16>(x); break;
    default: static_cast<signed char*>(to)[at] = (signed char)(int(x));
  }
}

__device__ __forceinline__ bool finite(float x) { return x - x == 0.f; }

__device__ __forceinline__ float reciprocal_seed(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// a / b for b whose reciprocal is a normal number; without the subroutine that a division calls.
__device__ __forceinline__ float ratio(float a, float b) {
  const float r = reciprocal_seed(b), q = a * r;
  return fmaf(fmaf(-q, b, a), r, q);
}

// A number of fp32 or fp64 on the device.
__device__ __forceinline__ double number_at(const void* at, int dtype) {
  return dtype == f64 ? *static_cast<const double*>(at) : double(*static_cast<const float*>(at));
}
__device__ __forceinline__ float number_of(const Number& of) {
  return of.at == nullptr ? of.value : float(number_at(of.at, of.dtype));
}
// 1 / x to 2^-44.
__device__ __forceinline__ double inverse(double x) {
  const double seed = double(reciprocal_seed(float(x)));
  return fma(seed, fma(-x, seed, 1.), seed);
}
__device__ __forceinline__ double inverse_of(const Scalars& of) {
  if (of.temperature == nullptr) return of.inverse;
  return inverse(number_at(of.temperature, of.temperature_dtype));
}
__device__ __forceinline__ double hardness_of(const Scalars& of) {
  return of.beta == nullptr ? of.hardness : number_at(of.beta, of.beta_dtype);
}

// Exponent n of a kernel.
__device__ __forceinline__ float exponent_of(const Want& want, int n) {
  const int at = want.order[n];
  if (want.scales != nullptr) return want.scales[at];
  if (at > 0) return want.further ? 0.f : float(hardness_of(want.scalars));
  const double inverse = inverse_of(want.scalars);
  return float(want.further ? inverse : inverse + hardness_of(want.scalars));
}

// c log2(e), never 0: the smallest exponent still sends -inf to -inf and not to NaN.
__device__ __forceinline__ float base2(float exponent) { return fmaxf(exponent * kLog2e, 1e-37f); }

// The first `exponents` of a pass so, in shared memory: for every thread behind a barrier.
template <int N>
__device__ __forceinline__ void load_bases(const Want& want, float (&to)[N]) {
  const int n = threadIdx.x;
  if (n < N) to[n] = base2(n < want.exponents ? exponent_of(want, n) : 0.f);
}

// The power of two that weights are divided by: an integer, so that to change it is exact; 0 for
// rows in which nothing has counted yet.
__device__ __forceinline__ float log2_base(float peak, float c2) {
  return peak == -infinity() ? 0.f : ceilf(peak * c2);
}

// What sums relative to an old peak are multiplied by. The first peak meets sums that are 0.
__device__ __forceinline__ float rebase(float old_peak, float base, float c2) {
  return old_peak == -infinity() ? 1.f : exp2_fast(log2_base(old_peak, c2) - base);
}

}  // namespace sede_cuda
