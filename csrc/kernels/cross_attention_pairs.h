// What both ways to go through a pair share: dot products of rows, their lengths, the aggregation.
#pragma once

#include "cross_attention_pairs_api.h"

#include "cross_attention_math.h"
#include "erase_row.h"
#include "gemm.h"

namespace sede {
namespace SEDE_ISA {
namespace {

// out[q * stride + s] = dot products of Q rows with S rows.
template <int Q, int S>
SEDE_INLINE void dot_tile(const float* left, const float* right, index_t dim, float* out,
                          index_t stride) {
  VecF sum[Q][S];
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) sum[q][s] = VecF{};
  for (index_t d = 0; d < dim; d += kLanes) {
    VecF row[S];
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) row[s] = load<VecF>(right + s * dim + d);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      const VecF other = load<VecF>(left + q * dim + d);
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) sum[q][s] += other * row[s];
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) out[q * stride + s] = total(sum[q][s]);
}

// The same for any number of rows on the left, as many at a time as there are registers for.
template <int S>
SEDE_INLINE void dot_column(const float* left, index_t rows, const float* right, index_t dim,
                            float* out, index_t stride) {
  constexpr index_t Q = kLanes == 16 ? 4 : 2;
  index_t q = 0;
  for (; q + Q <= rows; q += Q)
    dot_tile<Q, S>(left + q * dim, right, dim, out + q * stride, stride);
  if (Q == 4 && rows - q == 3)
    return dot_tile<3, S>(left + q * dim, right, dim, out + q * stride, stride);
  if (Q == 4 && rows - q == 2)
    return dot_tile<2, S>(left + q * dim, right, dim, out + q * stride, stride);
  if (rows - q == 1) dot_tile<1, S>(left + q * dim, right, dim, out + q * stride, stride);
}

// out[i] = |row_i|.
inline void row_norms(const float* rows, index_t count, index_t dim, float* out) {
  constexpr int kRows = 4;
  for (index_t first = 0; first < count; first += kRows) {
    const index_t some = count - first < kRows ? count - first : kRows;
    VecF sum[kRows] = {};
    for (index_t d = 0; d < dim; d += kLanes)
#pragma GCC unroll 4
      for (index_t r = 0; r < kRows; ++r) {
        const VecF v = load<VecF>(rows + (first + (r < some ? r : 0)) * dim + d);
        sum[r] += v * v;
      }
    for (index_t r = 0; r < some; ++r) out[first + r] = __builtin_sqrtf(total(sum[r]));
  }
}

// out[i] = left_i . right_i.
inline void row_dots(const float* left, const float* right, index_t count, index_t dim, float* out) {
  for (index_t r = 0; r < count; ++r) {
    VecF sum{};
    for (index_t d = r * dim; d < (r + 1) * dim; d += kLanes)
      sum += load<VecF>(left + d) * load<VecF>(right + d);
    out[r] = total(sum);
  }
}

// out += factor * row.
SEDE_INLINE void add_row(float factor, const float* row, index_t dim, float* out) {
  for (index_t d = 0; d < dim; d += kLanes)
    store(out + d, load<VecF>(out + d) + factor * load<VecF>(row + d));
}

// The result of m similarities; share becomes its derivative by each.
inline float aggregate(const CrossAttentionPairs& op, const float* sim, index_t m, float* share) {
  float top = kNegInf<float>;
  for (index_t j = 0; j < m; ++j) top = sim[j] > top || sim[j] != sim[j] ? sim[j] : top;
  float sum = 0.0f, whole = 0.0f;
  for (index_t j = 0; j < m; ++j) {
    float part = 1.0f;
    if (op.aggregate == Aggregate::lse) part = __builtin_expf(op.aggregate_scale * (sim[j] - top));
    if (op.aggregate == Aggregate::max) part = sim[j] == top ? 1.0f : 0.0f;
    share[j] = part;
    whole += part;
    sum += sim[j];
  }
  if (op.aggregate != Aggregate::sum)
    for (index_t j = 0; j < m; ++j) share[j] /= whole;
  switch (op.aggregate) {
    case Aggregate::lse: return top + __builtin_logf(whole) / op.aggregate_scale;
    case Aggregate::max: return top;
    case Aggregate::mean: return sum / float(m);
    default: return sum;
  }
}

// A pair of sets: n sources x, m queries y with their lengths, and where their gradients go.
struct PairOfSets {
  const float *x, *y, *query_norm;
  index_t n, m;
  float *d_x, *d_y;  // added to; null: not wanted
};

// Hands out arrays of 32-bit values from a thread's memory, or counts their bytes.
struct Arrays {
  char* base;
  index_t bytes = 0;

  template <class... T>
  void take(index_t count, T*&... out) {
    (one(count, out), ...);
  }
  template <class T>
  void one(index_t count, T*& out) {
    out = base ? (T*)(base + bytes) : nullptr;
    bytes += whole_vectors(count) * 4;
  }
};

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
