// The weighted InfoNCE of given scores. Logits and scores of a row are relative to its hardest
// negative; docs/method.md has the formulas. Forward: one block a row.
#include "device/info_nce_row.cuh"
#include "device/reduce.cuh"
#include "device/ticket.cuh"
#include "score_args.h"

namespace sede_cuda {

constexpr int kScoreThreads = 128, kScoreWarps = kScoreThreads / 32;

// A score, and whether its key is a negative of the query or has its id.
struct Chosen {
  float s;
  bool negative, same;
};

__device__ __forceinline__ Chosen chosen(const Scores& op, index_t row, index_t col, index_t own) {
  const float s = element(op.scores, row, col);
  bool counts = s != -infinity();
  if (op.valid != nullptr)
    counts = counts && op.valid[row * op.valid_row + col * op.valid_col] != 0;
  if (op.positive.data == nullptr) counts = counts && row != col;
  bool same = false;
  if (op.key_ids != nullptr) {
    const index_t key = op.key_ids[col];
    counts = counts && key != kEmpty;
    same = counts && op.ids != nullptr && key == own;
  }
  return {s, counts && (op.keep || !same), same};
}

// Sums over keys relative to the largest score: of e^{c (s - most)}, and of those times s - most.
struct ScoreSums {
  float sum[2] = {}, moment[2] = {};

  __device__ __forceinline__ void add(float below, float first, float second) {
    const float c[2] = {first, second};
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float weight = exp2_fast(below * c[e]);
      sum[e] += weight;
      moment[e] = fmaf(weight, below, moment[e]);
    }
  }
  __device__ __forceinline__ void over_threads() {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      sum[e] = over_block<kScoreWarps>(sum[e], Plus());
      moment[e] = over_block<kScoreWarps>(moment[e], Plus());
    }
  }
};

__device__ __forceinline__ void forward(const ScoreForward& op) {
  const Scores& given = op.given;
  const index_t row = blockIdx.x, B = given.scores.rows, N = given.scores.cols;
  const double inverse64 = inverse_of(given.scalars), beta64 = hardness_of(given.scalars);
  const float inverse = float(inverse64), beta = float(beta64);
  const index_t own = given.ids == nullptr ? 0 : given.ids[row];

  float most = -infinity(), extra_most = -infinity();
  index_t column = INT64_MAX, count = 0, extra_count = 0;
  for (index_t col = threadIdx.x; col < N; col += kScoreThreads) {
    const Chosen at = chosen(given, row, col, own);
    if (at.negative) {
      ++count;
      if (at.s > most) {
        most = at.s;
        column = col;
      }
    }
    if (given.further && at.same) {
      ++extra_count;
      extra_most = fmaxf(extra_most, at.s);
    }
  }
  const float highest = over_block<kScoreWarps>(most, Larger());
  column = over_block<kScoreWarps>(most == highest ? column : INT64_MAX, Smaller());
  most = highest;
  extra_most = over_block<kScoreWarps>(extra_most, Larger());
  count = over_block<kScoreWarps>(count, Plus());
  extra_count = over_block<kScoreWarps>(extra_count, Plus());

  ScoreSums sums, extra;
  for (index_t col = threadIdx.x; col < N; col += kScoreThreads) {
    const Chosen at = chosen(given, row, col, own);
    if (at.negative)
      sums.add(at.s - most, float(inverse64 + beta64) * kLog2e, beta * kLog2e);
    if (given.further && at.same) extra.add(at.s - extra_most, inverse * kLog2e, 0.f);
  }
  sums.over_threads();
  if (given.further) extra.over_threads();

  const float right = given.positive.data == nullptr ? element(given.scores, row, row)
                                                     : element(given.positive, row, 0);
  const bool some = count > 0, more = extra_count > 0;
  const bool unknown = sums.sum[0] != sums.sum[0];
  const float base = some ? most : right, gap = right - base;
  const float total = some ? sums.sum[0] : 1.f, norm = some ? sums.sum[1] : 1.f;
  const float shift = logf(total), mean = some ? ratio(sums.moment[0], total) : 0.f;
  float log_negatives = shift, by_weights = mean + base, shift_1 = 0.f;
  if (given.weighted && given.normalized) {
    shift_1 = logf(norm);
    by_weights = mean - (some ? ratio(sums.moment[1], norm) : 0.f);
    log_negatives = logf(float(some ? count : 1)) + shift - shift_1;
  } else if (given.weighted) {
    log_negatives = shift + beta * base;
  }
  if (!some) log_negatives = -infinity();

  const float logit = inverse * gap, number = float(extra_count);
  float own_share = 1.f, alike = 1.f, attracted = gap, plain_mean = gap, log_positives = logit;
  float extra_shift = 0.f;
  if (more) {
    const float ahead = extra_most - base;
    extra_shift = logf(extra.sum[0]);
    const float extra_total = inverse * ahead + extra_shift;
    own_share = sigmoid(logit - extra_total);
    log_positives = log_add(logit, extra_total);
    const float others = ahead + ratio(extra.moment[0], extra.sum[0]);
    attracted = own_share * gap + (1.f - own_share) * others;
    alike = ratio(1.f, 1.f + number);
    plain_mean = (gap + number * ahead + extra.moment[1]) * alike;
  }
  const float above = log_negatives - log_positives, pi = sigmoid(above), weight = op.weight;
  float loss = softplus(above), by_inverse = pi * (mean - attracted);
  if (more) {
    loss += log_positives - inverse * plain_mean;
    by_inverse += attracted - plain_mean;
  }
  const bool attached = given.weighted && !given.detached;
  if (threadIdx.x == 0) {
    const float table[kScoreTable] = {
        loss, right, log_negatives + inverse * base, unknown ? sums.sum[0] : most,
        weight * inverse * (own_share - alike - pi * own_share),
        -inverse * inverse * weight * by_inverse, some ? weight * pi * by_weights : 0.f, shift,
        shift_1, weight * pi * (attached ? inverse + beta : inverse),
        attached && given.normalized ? -weight * pi * beta : 0.f, more ? extra_most : 0.f,
        extra_shift, more ? weight * inverse * sigmoid(-above) * (1.f - own_share) : 0.f,
        more ? -weight * inverse * alike : 0.f};
#pragma unroll
    for (int i = 0; i < kScoreTable; ++i) op.table[i * B + row] = table[i];
    op.count[row] = count;
    op.column[row] = column == INT64_MAX ? -1 : column;
  }
  if (op.reduced)
    add_up<kScoreWarps>(op.loss, op.slots, loss * weight);
  else if (threadIdx.x == 0)
    op.loss[row] = loss;
}

__device__ __forceinline__ void sum_scalars(const ScoreBackward& op) {
  const index_t B = op.given.scores.rows;
  double by_tau = 0., by_beta = 0.;
  for (index_t row = threadIdx.x; row < B; row += kScoreThreads) {
    const double upstream = op.upstream[row * op.step];
    by_tau += upstream * op.table[kScoreTemperatureGrad * B + row];
    by_beta += upstream * op.table[kScoreHardnessGrad * B + row];
  }
  by_tau = over_block<kScoreWarps>(by_tau, Plus());
  by_beta = over_block<kScoreWarps>(by_beta, Plus());
  if (threadIdx.x != 0) return;
  if (op.temperature != nullptr) *op.temperature = float(by_tau);
  if (op.hardness != nullptr) *op.hardness = float(by_beta);
}

// Block (i, n): columns n kScoreColumns and on of row i; the last i: temperature and hardness.
__device__ __forceinline__ void backward(const ScoreBackward& op) {
  const Scores& given = op.given;
  const index_t row = blockIdx.x, B = given.scores.rows, N = given.scores.cols;
  if (row == B) {
    if (blockIdx.y == 0) sum_scalars(op);
    return;
  }
  const auto kept = [&](int i) { return op.table[i * B + row]; };
  const float upstream = op.upstream[row * op.step];
  const float by_positive = upstream * kept(kScorePositiveGrad);
  if (op.positive != nullptr && blockIdx.y == 0 && threadIdx.x == 0)
    store(op.positive, given.positive.dtype, row, by_positive);
  if (op.scores == nullptr) return;
  const double inverse = inverse_of(given.scalars), beta = hardness_of(given.scalars);
  const float first = float(inverse + beta) * kLog2e, second = float(beta) * kLog2e;
  const float third = float(inverse) * kLog2e;
  const index_t own = given.ids == nullptr ? 0 : given.ids[row];
  const float most = kept(kScoreHardest), extra_most = kept(kScoreExtraMost);
  const float shift = kept(kScoreShift) * kLog2e, shift_1 = kept(kScoreShift + 1) * kLog2e;
  const float extra_shift = kept(kScoreExtraShift) * kLog2e;
  const float grad = upstream * kept(kScoreGrad), grad_1 = upstream * kept(kScoreGrad + 1);
  const float extra = upstream * kept(kScoreExtraGrad);
  const float extra_1 = upstream * kept(kScoreExtraGrad + 1);
  const index_t begin = index_t(blockIdx.y) * kScoreColumns;
  const index_t end = min(begin + kScoreColumns, N);
  for (index_t col = begin + threadIdx.x; col < end; col += kScoreThreads) {
    const Chosen at = chosen(given, row, col, own);
    float found = 0.f;
    if (at.negative) {
      found = grad * exp2_fast(fmaf(at.s - most, first, -shift));
      if (grad_1 != 0.f) found += grad_1 * exp2_fast(fmaf(at.s - most, second, -shift_1));
    }
    if (given.further && at.same)
      found = fmaf(extra, exp2_fast(fmaf(at.s - extra_most, third, -extra_shift)), extra_1);
    if (given.positive.data == nullptr && row == col) found = by_positive;
    store(op.scores, given.scores.dtype, row * op.row_stride + col * op.col_stride, found);
  }
}

}  // namespace sede_cuda

using namespace sede_cuda;

extern "C" __global__ void __launch_bounds__(kScoreThreads)
    score_forward(const __grid_constant__ ScoreForward op) {
  forward(op);
}
extern "C" __global__ void __launch_bounds__(kScoreThreads)
    score_backward(const __grid_constant__ ScoreBackward op) {
  backward(op);
}
