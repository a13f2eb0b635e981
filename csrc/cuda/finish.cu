// Parts of a bank become one: log-sum-exps, means, counts and the hardest row. One block a row.
#include "device/reduce.cuh"

namespace sede_cuda {

constexpr int kFinishThreads = 128;

__device__ __forceinline__ void finish(const Finish& op) {
  const index_t row = blockIdx.x, B = op.rows, D = op.dim;
  const int E = op.want.exponents, A = op.want.accumulators;
  float peak = -infinity();
  for (int part = 0; part < op.from.parts; ++part)
    peak = fmaxf(peak, op.from.peak[part * B + row]);

  bool nan = false;
#pragma unroll 1
  for (int e = 0; e < E; ++e) {
    const float c2 = base2(op.want.scales[op.want.order[e]]), base = log2_base(peak, c2);
    const bool kept = e < A;
    float total = 0.f, mass = 0.f, moment = 0.f;
    for (int part = 0; part < op.from.parts; ++part) {
      const float shrink = rebase(op.from.peak[part * B + row], base, c2);
      total += op.from.total[(part * E + e) * B + row] * shrink;
      if (op.want.moments) moment += op.from.moment[(part * E + e) * B + row] * shrink;
      if (kept) mass += op.from.mass[(part * A + e) * B + row] * shrink;
    }
    if (op.scaled) mass = total;
    nan = nan || total != total;
    if (threadIdx.x == 0) {
      const index_t at = op.want.order[e] * B + row;
      const float some = total == 0.f ? 1.f : total;
      op.to.lse[at] = total == 0.f ? -infinity() : (base + log2f(total)) / kLog2e;
      if (op.want.moments) op.to.moment[at] = moment / some;
    }
    if (!kept) continue;
    const float divisor = mass == 0.f ? 1.f : mass;
    for (index_t d = threadIdx.x; d < D; d += kFinishThreads) {
      float sum = 0.f;
      for (int part = 0; part < op.from.parts; ++part) {
        const float shrink = rebase(op.from.peak[part * B + row], base, c2);
        sum += op.from.acc[((part * A + e) * B + row) * D + d] * shrink;
      }
      op.to.acc[(e * B + row) * D + d] = sum / divisor;
    }
  }
  if (threadIdx.x != 0) return;
  index_t count = 0, index = -1;
  for (int part = 0; part < op.from.parts; ++part) {
    const index_t at = part * B + row;
    count += op.from.count[at];
    if (op.want.hardest && index < 0 && op.from.peak[at] == peak) index = op.from.index[at];
  }
  op.to.count[row] = count;
  if (!op.want.hardest) return;
  op.to.top[row] = nan ? __int_as_float(0x7fffffff) : peak;
  op.to.index[row] = nan ? -1 : index;
}

}  // namespace sede_cuda

extern "C" __global__ void __launch_bounds__(sede_cuda::kFinishThreads)
    finish_sums(sede_cuda::Finish op) {
  sede_cuda::finish(op);
}
