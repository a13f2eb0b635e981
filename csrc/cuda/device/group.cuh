// The threads that share a row: a warp, or a whole block. Results do not depend on which.
#pragma once

#include "reduce.cuh"

namespace sede_cuda {

struct WarpGroup {
  static constexpr int SIZE = 32;
  __device__ __forceinline__ int lane() const { return threadIdx.x % 32; }
  __device__ __forceinline__ void sync() const { __syncwarp(); }
  template <class T, class F>
  __device__ __forceinline__ T over(T x, F f) const { return over_lanes<32>(x, f); }

  // How many threads before this one have `flag`, and how many of all.
  __device__ __forceinline__ int before(bool flag, int& all) const {
    const unsigned vote = __ballot_sync(kAllLanes, flag);
    all = __popc(vote);
    return __popc(vote & ((1u << lane()) - 1));
  }
};

template <int THREADS>
struct BlockGroup {
  static constexpr int SIZE = THREADS, WARPS = THREADS / 32;
  __device__ __forceinline__ int lane() const { return threadIdx.x; }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  template <class T, class F>
  __device__ __forceinline__ T over(T x, F f) const { return over_block<WARPS>(x, f); }

  __device__ __forceinline__ int before(bool flag, int& all) const {
    __shared__ int of_warp[WARPS];
    const int warp = threadIdx.x / 32;
    const unsigned vote = __ballot_sync(kAllLanes, flag);
    __syncthreads();  // an earlier count may still be read
    if (threadIdx.x % 32 == 0) of_warp[warp] = __popc(vote);
    __syncthreads();
    int less = __popc(vote & ((1u << threadIdx.x % 32) - 1));
    all = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      if (w < warp) less += of_warp[w];
      all += of_warp[w];
    }
    return less;
  }
};

}  // namespace sede_cuda
