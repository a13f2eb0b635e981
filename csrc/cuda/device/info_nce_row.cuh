// One row of the weighted InfoNCE: its loss and derivatives from sums. The arithmetic of
// csrc/info_nce_row.h in fp32; docs/method.md has the formulas.
#pragma once

#include "../info_nce_args.h"
#include "numbers.cuh"

namespace sede_cuda {

// log(1 + y) for y in [0, 1], as 2 artanh(y / (2 + y)): small y keep their digits.
__device__ __forceinline__ float log_of_one_and(float y) {
  const float z = ratio(y, 2.f + y), w = z * z;
  float r = 1.f / 15;
#pragma unroll
  for (int n = 13; n >= 1; n -= 2) r = fmaf(r, w, 1.f / float(n));
  return 2.f * z * r;
}

__device__ __forceinline__ float log_add(float a, float b) {
  if (a == b && a - a != 0.f) return a;  // both infinite
  return fmaxf(a, b) + log_of_one_and(exponential(-fabsf(a - b)));
}
__device__ __forceinline__ float softplus(float x) {
  return fmaxf(x, 0.f) + log_of_one_and(exponential(-fabsf(x)));
}
__device__ __forceinline__ float sigmoid(float x) {
  return x < -80.f ? exponential(x) : ratio(1.f, 1.f + exponential(-x));
}
// ((1 - e^{-loss}) / most)^focus; NaN of NaN.
__device__ __forceinline__ float focused(float loss, float most, float focus) {
  const float base = ratio(-expm1f(-loss), most);
  return base <= 0.f ? 0.f : exponential(focus * logf(base));
}

// A row's sums over all segments.
struct RowSums {
  float lse[2] = {-infinity(), -infinity()};
  float moment[2] = {};
  float count = 0.f;
};

struct RowLoss {
  float loss, log_negatives;
  float positive, inverse, hardness;  // derivatives by s+, 1 / tau, beta
  float lse[2];    // by each log-sum-exp, times what replaces its exponent in the query's gradient
  float extra[2];  // the same of the further positives at 1 / tau and 0
};

struct Debiased {
  float value, by_negatives, by_positive, by_inverse;
};

__device__ __forceinline__ Debiased debias(const InfoNceRule& rule, float log_negatives,
                                           float logit, float count, float it) {
  if (!rule.debiased || log_negatives != log_negatives) return {log_negatives, 1.f, 0.f, 0.f};
  if (count == 0.f) return {-infinity(), 0.f, 0.f, 0.f};
  const float log_n = logf(count), floor = log_n - it;
  const float below = logit + log_n + rule.log_tau_plus - log_negatives;
  if (below < 0.f) {
    const float rest = -expm1f(below);  // the share that stays
    const float corrected = log_negatives + logf(rest) - rule.log_rest;
    if (corrected >= floor)
      return {corrected, ratio(1.f, rest), ratio(-exponential(below), rest), 0.f};
  }
  return {floor, 0.f, 0.f, -1.f};
}

__device__ __forceinline__ RowLoss row_loss(const InfoNceRule& rule, bool normalized, float it,
                                            float beta, float s, const RowSums& sums,
                                            const RowSums& extra) {
  const float logit = it * s;
  float log_negatives = sums.lse[0];
  if (normalized)
    log_negatives =
        sums.count == 0.f ? -infinity() : logf(sums.count) + sums.lse[0] - sums.lse[1];
  const Debiased negatives = debias(rule, log_negatives, logit, sums.count, it);

  const bool more = extra.count != 0.f;
  const float own = more ? sigmoid(logit - extra.lse[0]) : 1.f;  // its own positive's share
  const float log_positives = more ? log_add(logit, extra.lse[0]) : logit;
  const float alike = ratio(1.f, 1.f + extra.count);
  const float mean = (s + extra.count * extra.moment[1]) * alike;
  const float attracted = own * s + (1.f - own) * extra.moment[0];
  const float above = negatives.value - log_positives, pi = sigmoid(above);

  RowLoss row;
  row.loss = softplus(above);
  row.log_negatives = negatives.value;
  row.positive = it * pi * (negatives.by_positive - own);
  row.inverse = pi * (negatives.by_negatives * sums.moment[0] + negatives.by_positive * s +
                      negatives.by_inverse - attracted);
  const float outer = pi * negatives.by_negatives;
  const float norm = normalized ? sums.moment[1] : 0.f;
  row.hardness = rule.weighted ? outer * (sums.moment[0] - norm) : 0.f;
  row.lse[0] = outer * (rule.detached ? it : it + beta);
  row.lse[1] = normalized && !rule.detached ? -outer * beta : 0.f;
  row.extra[0] = row.extra[1] = 0.f;
  if (more) {
    row.loss += log_positives - it * mean;
    row.positive += it * (own - alike);
    row.inverse += attracted - mean;
    row.extra[0] = it * sigmoid(-above) * sigmoid(extra.lse[0] - logit);
    row.extra[1] = -it * extra.count * alike;
  }
  return row;
}

}  // namespace sede_cuda
