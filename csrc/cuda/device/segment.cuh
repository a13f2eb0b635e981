// Parts of a pass become one: what a row has found in a segment of its negatives.
#pragma once

#include "reduce.cuh"

namespace sede_cuda {

struct Segment {
  float peak = -infinity();
  float lse[kExponents] = {-infinity(), -infinity(), -infinity()};  // in a kernel's order
  float moment[kExponents] = {};                                    // means
  index_t count = 0, index = -1;
  bool unknown = false;  // a NaN is among its sums

  // The largest similarity that counts.
  __device__ __forceinline__ float top() const {
    return unknown ? __int_as_float(0x7fffffff) : peak;
  }
};

// What the accumulators of the parts are multiplied by: their sum is then the mean row.
using PartWeights = float[kAccumulators][kMostParts];

// For every thread of a block. The weights are for those behind a barrier; `bases` as load_bases
// leaves them.
__device__ __forceinline__ Segment joined(const Partial& from, const Want& want,
                                          const float (&bases)[kExponents], index_t row,
                                          index_t B, bool scaled, PartWeights& weights) {
  const int lane = threadIdx.x % 32;
  Segment found;
  float peak = -infinity();
  index_t count = 0, index = INT64_MAX;
#pragma unroll 1
  for (int part = lane; part < from.parts; part += 32) {
    peak = fmaxf(peak, from.peak[part * B + row]);
    count += from.count[part * B + row];
  }
  found.peak = over_lanes<32>(peak, Larger());
  found.count = over_lanes<32>(count, Plus());
  if (want.hardest && from.index != nullptr) {
#pragma unroll 1
    for (int part = lane; part < from.parts; part += 32) {
      const index_t at = part * B + row;
      if (from.peak[at] == found.peak && from.index[at] >= 0)
        index = min(index, from.index[at]);
    }
    index = over_lanes<32>(index, Smaller());
    found.index = index == INT64_MAX ? -1 : index;
  }
#pragma unroll
  for (int e = 0; e < kExponents; ++e) {
    if (e >= want.exponents) break;
    const float c2 = bases[e], base = log2_base(found.peak, c2);
    const bool kept = e < want.accumulators;
    float total = 0.f, mass = 0.f, moment = 0.f;
#pragma unroll 1
    for (int part = lane; part < from.parts; part += 32) {
      const float shrink = rebase(from.peak[part * B + row], base, c2);
      const index_t at = (index_t(part) * want.exponents + e) * B + row;
      total += from.total[at] * shrink;
      if (want.moments) moment += from.moment[at] * shrink;
      if (kept) mass += from.mass[(index_t(part) * want.accumulators + e) * B + row] * shrink;
    }
    total = over_lanes<32>(total, Plus());
    found.unknown = found.unknown || total != total;
    found.lse[e] = total == 0.f ? -infinity() : (base + log2f(total)) * kLn2;
    if (want.moments)
      found.moment[e] = ratio(over_lanes<32>(moment, Plus()), total == 0.f ? 1.f : total);
    if (!kept) continue;
    mass = scaled ? total : over_lanes<32>(mass, Plus());
    if (threadIdx.x < 32)
#pragma unroll 1
      for (int part = lane; part < from.parts; part += 32)
        weights[e][part] =
            ratio(rebase(from.peak[part * B + row], base, c2), mass == 0.f ? 1.f : mass);
  }
  if (found.unknown) found.index = -1;
  return found;
}

// Column d of the mean row at exponent e.
__device__ __forceinline__ float mean_of(const Partial& from, const Want& want, int e, index_t row,
                                         index_t B, index_t d, index_t D,
                                         const PartWeights& weights) {
  float sum = 0.f;
#pragma unroll 2
  for (int part = 0; part < from.parts; ++part) {
    const index_t at = (index_t(part) * want.accumulators + e) * B + row;
    sum = fmaf(from.acc[at * D + d], weights[e][part], sum);
  }
  return sum;
}

}  // namespace sede_cuda
