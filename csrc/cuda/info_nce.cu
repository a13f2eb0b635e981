// The weighted InfoNCE from the sums of its passes: losses, statistics, gradients of a unit loss,
// and their product with the upstream gradient. One block a row.
#include "device/info_nce_row.cuh"
#include "device/row_dot.cuh"
#include "device/segment.cuh"
#include "device/ticket.cuh"

namespace sede_cuda {

constexpr int kRowThreads = 128, kRowWarps = kRowThreads / 32;

__device__ __forceinline__ void limits(const Limits& op) {
  const index_t row = blockIdx.x;
  const float s = row_dot<kRowThreads>(op.query, op.key, row);
  if (threadIdx.x == 0) op.limit[row] = s + number_of(op.margin);
}

// A segment that may not be there, and its exponents in the caller's order, which is the kernel's.
__device__ __forceinline__ Segment segment(const Partial& from, const Want& want,
                                           const float (&bases)[kExponents], index_t row,
                                           index_t B, bool scaled, PartWeights& weights) {
  return from.parts > 0 ? joined(from, want, bases, row, B, scaled, weights) : Segment();
}

__device__ __forceinline__ float share(float part, float whole) {
  return part == -infinity() ? 0.f : exponential(part - whole);
}

__device__ __forceinline__ RowSums sum_of(const Segment& a, const Segment& b) {
  RowSums found;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    found.lse[e] = log_add(a.lse[e], b.lse[e]);
    found.moment[e] = share(a.lse[e], found.lse[e]) * a.moment[e] +
                      share(b.lse[e], found.lse[e]) * b.moment[e];
  }
  found.count = float(a.count + b.count);
  return found;
}

// The mean of a focused loss, by the block that ends last: every row's loss decides the weights of all.
// Bases are relative to the largest one, before the power: they may be subnormal or 0 where the share
// of a row is still well defined.
__device__ __forceinline__ void focus(const InfoNceFinish& op) {
  if (!last_block(op.slots)) return;
  const index_t B = op.rows;
  double reduced = 0.;
#pragma unroll 1
  for (int n = 0; n < op.sides; ++n) {
    float* weights = op.table + (n * kTable + kWeight) * B;  // no other block wrote there
    float most = 0.f;
#pragma unroll 4
    for (index_t row = threadIdx.x; row < B; row += kRowThreads) {
      const float loss = __int_as_float(atomicAdd(op.slots + 1 + n * B + row, 0));
      weights[row] = loss;
      most = fmaxf(most, -expm1f(-loss));
    }
    most = over_block<kRowWarps>(most, Larger());
    most = most == 0.f ? 1.f : most;
    double total = 0., weighted = 0.;
    for (index_t row = threadIdx.x; row < B; row += kRowThreads) {
      const float loss = weights[row];
      const float weight = focused(loss, most, op.focus);
      weights[row] = weight;
      total += weight;
      weighted += double(weight) * loss;
    }
    total = over_block<kRowWarps>(total, Plus());
    weighted = over_block<kRowWarps>(weighted, Plus());
    total = total == 0. ? 1. : total;
    const double each = inverse(total);  // of at least 1
    reduced += weighted * each;
    const float share = op.scale * float(each);
    for (index_t row = threadIdx.x; row < B; row += kRowThreads) weights[row] *= share;
  }
  if (threadIdx.x == 0) *op.loss = float(reduced) * op.scale;
}

__device__ __forceinline__ void finish(const InfoNceFinish& op) {
  __shared__ PartWeights of_bank, of_further, none;
  const index_t row = blockIdx.x, B = op.rows, D = op.dim;
  const float it = float(inverse_of(op.want.scalars)), beta = float(hardness_of(op.want.scalars));
  const bool batch = op.batch_at == nullptr || *op.batch_at != 0;
  __shared__ float bases[kExponents], further_bases[kExponents];
  load_bases(op.want, bases);
  load_bases(op.further, further_bases);
  __syncthreads();
  float weighted = 0.f;
#pragma unroll 1
  for (int n = 0; n < op.sides; ++n) {
    const InfoNceSide& side = op.side[n];
    const float s = row_dot<kRowThreads>(side.query, side.key, row);
    const Segment bank = segment(side.bank, op.want, bases, row, B, side.bank_scaled != 0, of_bank);
    const Segment more = segment(side.bank_further, op.further, further_bases, row, B,
                                 side.bank_scaled != 0, of_further);
    Segment others, more_others;
    if (batch) {
      others = segment(side.batch, op.want_of_batch, bases, row, B, false, none);
      more_others = segment(side.batch_further, op.further_of_batch, further_bases, row, B, false,
                            none);
    }
    RowSums sums = sum_of(bank, others), extra;
    if (op.rule.further) extra = sum_of(more, more_others);
    const RowLoss found = row_loss(op.rule, op.want.exponents == 2, it, beta, s, sums, extra);
    float weight = op.focus == 0.f ? op.scale : 1.f;
    if (op.rule.focus != 0.f) weight *= focused(found.loss, 1.f, op.rule.focus);
    weighted += found.loss * weight;
    if (threadIdx.x == 0) {
      if (op.focus != 0.f)
        atomicExch(op.slots + 1 + n * B + row, __float_as_int(found.loss));
      const bool higher = others.top() > bank.top() || others.unknown;
      const float table[kTable] = {
          found.loss, weight, s, found.log_negatives, higher ? others.top() : bank.top(),
          found.positive * weight, -it * it * found.inverse * weight, found.hardness * weight,
          sums.lse[0], sums.lse[1], found.lse[0] * weight, found.lse[1] * weight,
          extra.lse[0], extra.lse[1], found.extra[0] * weight, found.extra[1] * weight};
#pragma unroll
      for (int i = 0; i < kTable; ++i)
        if (i != kWeight || op.focus == 0.f) op.table[(n * kTable + i) * B + row] = table[i];
      if (op.count != nullptr) op.count[n * B + row] = bank.count + others.count;
      if (op.index != nullptr) op.index[n * B + row] = higher ? -1 : bank.index;
    }
    if (op.grad == nullptr) continue;
    __syncthreads();  // the weights of the parts are there
    const float by_s = found.positive * weight;
    const float first = found.lse[0] * weight * share(bank.lse[0], sums.lse[0]);
    const float second = found.lse[1] * weight * share(bank.lse[1], sums.lse[1]);
    const float toward = found.extra[0] * weight * share(more.lse[0], extra.lse[0]);
    const float plain = found.extra[1] * weight * share(more.lse[1], extra.lse[1]);
#pragma unroll 1
    for (index_t d = threadIdx.x; d < D; d += kRowThreads) {
      float sum = by_s * element(side.key, row, d);
      sum = fmaf(first, mean_of(side.bank, op.want, 0, row, B, d, D, of_bank), sum);
      if (op.want.accumulators == 2)
        sum = fmaf(second, mean_of(side.bank, op.want, 1, row, B, d, D, of_bank), sum);
      if (op.rule.further) {
        const Partial& from = side.bank_further;
        sum = fmaf(toward, mean_of(from, op.further, 0, row, B, d, D, of_further), sum);
        sum = fmaf(plain, mean_of(from, op.further, 1, row, B, d, D, of_further), sum);
      }
      op.grad[(n * B + row) * D + d] = sum;
    }
    __syncthreads();  // the other side's take their place
  }
  if (op.focus != 0.f)
    focus(op);
  else if (op.reduced)
    add_up<kRowWarps>(op.loss, op.slots, weighted);
  else if (threadIdx.x == 0)
    op.loss[row] = weighted;
}

// What the rows of the table and of the gradient are still to be weighted by.
__device__ __forceinline__ float row_weight(const InfoNceScale& op, int n, index_t row) {
  return op.focused ? op.table[(n * kTable + kWeight) * op.rows + row] : 1.f;
}

__device__ __forceinline__ void scaled_row(const InfoNceScale& op, int n) {
  const index_t row = blockIdx.x, B = op.rows, D = op.dim;
  const float upstream = op.upstream[row * op.step] * row_weight(op, n, row);
  const float toward = upstream * op.table[(n * kTable + kPositiveGrad) * B + row];
  for (index_t d = threadIdx.x; d < D; d += kRowThreads) {
    const index_t at = row * D + d, ours = (n * B + row) * D + d;
    if (op.to_query[n] != nullptr) {
      const float added = op.added_query == nullptr ? 0.f : op.added_query[ours];
      store(op.to_query[n], op.query_dtype, at, fmaf(op.grad[ours], upstream, added));
    }
    if (op.to_key[n] != nullptr) {
      const float added = op.added_key == nullptr ? 0.f : op.added_key[ours];
      store(op.to_key[n], op.key_dtype[n], at, fmaf(element(op.query[n], row, d), toward, added));
    }
  }
}

// The last block sums the derivatives of temperature and hardness.
__device__ __forceinline__ void scale(const InfoNceScale& op) {
  const index_t B = op.rows;
  if (blockIdx.x < B) {
    for (int n = 0; n < op.sides; ++n) scaled_row(op, n);
    return;
  }
  double by_tau = 0., by_beta = 0.;
  for (int n = 0; n < op.sides; ++n) {
    const float* table = op.table + n * kTable * B;
    for (index_t row = threadIdx.x; row < B; row += kRowThreads) {
      const double upstream = double(op.upstream[row * op.step]) * row_weight(op, n, row);
      by_tau += upstream * table[kTemperatureGrad * B + row];
      by_beta += upstream * table[kHardnessGrad * B + row];
    }
  }
  by_tau = over_block<kRowWarps>(by_tau, Plus());
  by_beta = over_block<kRowWarps>(by_beta, Plus());
  if (threadIdx.x != 0) return;
  if (op.to_temperature != nullptr) *op.to_temperature = float(by_tau);
  if (op.to_hardness != nullptr) *op.to_hardness = float(by_beta);
}

}  // namespace sede_cuda

using namespace sede_cuda;

extern "C" __global__ void __launch_bounds__(kRowThreads)
    info_nce_limits(const __grid_constant__ Limits op) {
  limits(op);
}
extern "C" __global__ void __launch_bounds__(kRowThreads, 8)
    info_nce_finish(const __grid_constant__ InfoNceFinish op) {
  finish(op);
}
extern "C" __global__ void __launch_bounds__(kRowThreads)
    info_nce_scale(const __grid_constant__ InfoNceScale op) {
  scale(op);
}
