// Parts of a bank become one: log-sum-exps, means, counts and the hardest row. One block a row.
#include "device/segment.cuh"

namespace sede_cuda {

constexpr int kFinishThreads = 128;

__device__ __forceinline__ void finish(const Finish& op) {
  __shared__ PartWeights weights;
  __shared__ float bases[kExponents];
  const index_t row = blockIdx.x, B = op.rows, D = op.dim;
  load_bases(op.want, bases);
  __syncthreads();
  const Segment found = joined(op.from, op.want, bases, row, B, op.scaled != 0, weights);
  __syncthreads();
#pragma unroll 1
  for (int e = 0; e < op.want.accumulators; ++e)
#pragma unroll 1
    for (index_t d = threadIdx.x; d < D; d += kFinishThreads)
      op.to.acc[(e * B + row) * D + d] = mean_of(op.from, op.want, e, row, B, d, D, weights);
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int e = 0; e < kExponents; ++e) {
    if (e >= op.want.exponents) break;
    const index_t at = op.want.order[e] * B + row;
    op.to.lse[at] = found.lse[e];
    if (op.want.moments) op.to.moment[at] = found.moment[e];
  }
  op.to.count[row] = found.count;
  if (!op.want.hardest) return;
  op.to.top[row] = found.top();
  op.to.index[row] = found.index;
}

}  // namespace sede_cuda

extern "C" __global__ void __launch_bounds__(sede_cuda::kFinishThreads, 4)
    finish_sums(sede_cuda::Finish op) {
  sede_cuda::finish(op);
}
