// Reductions over a warp and over a block, always in the same order.
#pragma once

#include "numbers.cuh"

namespace sede_cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

struct Larger {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const { return a < b ? b : a; }
};
struct Smaller {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const { return b < a ? b : a; }
};
struct Plus {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};

// Over groups of WIDTH neighbouring lanes; every lane gets the result.
template <int WIDTH, class T, class F>
__device__ __forceinline__ T over_lanes(T x, F f) {
#pragma unroll
  for (int step = WIDTH / 2; step > 0; step /= 2) x = f(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

// Over a block of WARPS warps; every thread gets the result.
template <int WARPS, class T, class F>
__device__ __forceinline__ T over_block(T x, F f) {
  __shared__ T of_warp[WARPS];
  x = over_lanes<32>(x, f);
  __syncthreads();  // an earlier reduction may still be read
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  T all = of_warp[0];
#pragma unroll
  for (int warp = 1; warp < WARPS; ++warp) all = f(all, of_warp[warp]);
  return all;
}

}  // namespace sede_cuda
