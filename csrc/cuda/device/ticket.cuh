// Blocks that end in any order, and the last of them to do so. What they leave for it passes
// through atomic exchanges: no block reads what another stores.
#pragma once

#include "reduce.cuh"

namespace sede_cuda {

// Whether this block is the last of the grid; the first ticket is 0 and left so.
__device__ __forceinline__ bool last_block(int* tickets) {
  __shared__ int last;
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(tickets, 1) == int(gridDim.x) - 1;
    if (last) atomicExch(tickets, 0);
    __threadfence();
  }
  __syncthreads();
  return last != 0;
}

// The sum of what the blocks have, in their order.
template <int WARPS>
__device__ __forceinline__ void add_up(float* out, int* slots, float part) {
  if (threadIdx.x == 0) atomicExch(slots + 1 + blockIdx.x, __float_as_int(part));
  if (!last_block(slots)) return;
  double sum = 0.;
  for (index_t i = threadIdx.x; i < gridDim.x; i += 32 * WARPS)
    sum += double(__int_as_float(atomicAdd(slots + 1 + i, 0)));
  sum = over_block<WARPS>(sum, Plus());
  if (threadIdx.x == 0) *out = float(sum);
}

}  // namespace sede_cuda
