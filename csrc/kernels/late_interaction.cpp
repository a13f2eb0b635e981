// The nearest source of each query fragment, and the gradients: sums of the rows that were nearest.
#include "late_interaction_api.h"

#include "simd.h"

namespace sede {
namespace SEDE_ISA {
namespace {

constexpr index_t kLanes = Simd<float>::width;
constexpr int kVectors = 8;  // of a fragment, held in registers

// V vectors of columns of one set.
template <int V>
SEDE_INLINE void nearest(const Nearest& op, index_t set, index_t column) {
  const float* s = op.s + op.begin[set] * op.columns + column;
  VecF best[V];
  VecI at[V] = {};
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) best[v] = load<VecF>(s + v * kLanes);
  for (index_t r = 1; r < op.count[set]; ++r) {
    s += op.columns;
    const VecI here = splat<VecI>(std::int32_t(r));
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const VecF x = load<VecF>(s + v * kLanes);
      const VecI more = (x > best[v]) | ((x != x) & (best[v] == best[v]));
      best[v] = more ? x : best[v];
      at[v] = more ? here : at[v];
    }
  }
  const index_t out = set * op.stride + column;
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    store(op.score + out + v * kLanes, best[v]);
    store(op.source + out + v * kLanes, at[v]);
  }
}

void one_column(const Nearest& op, index_t set, index_t column) {
  const float* s = op.s + op.begin[set] * op.columns + column;
  float best = *s;
  std::int32_t at = 0;
  for (index_t r = 1; r < op.count[set]; ++r) {
    s += op.columns;
    if (*s > best || (*s != *s && best == best)) best = *s, at = std::int32_t(r);
  }
  op.score[set * op.stride + column] = best;
  op.source[set * op.stride + column] = at;
}

void forward(const Nearest& op, index_t set, index_t begin, index_t end) {
  index_t column = begin;
  if (op.count[set] == 0) {
    for (; column < end; ++column)
      op.score[set * op.stride + column] = 0.0f, op.source[set * op.stride + column] = 0;
    return;
  }
  for (; column + 4 * kLanes <= end; column += 4 * kLanes) nearest<4>(op, set, column);
  for (; column + kLanes <= end; column += kLanes) nearest<1>(op, set, column);
  if (column == end) return;
  if (end - begin >= kLanes) return nearest<1>(op, set, end - kLanes);  // some columns again
  for (; column < end; ++column) one_column(op, set, column);
}

// The share of a column of a set, 0 where the source is beyond it.
SEDE_INLINE float share_of(const NearestBackward& op, index_t set, index_t column, index_t& source) {
  const index_t at = set * op.columns + column;
  source = op.source[at];
  return source >= 0 && source < op.count[set] ? op.share[at] : 0.0f;
}

template <int V>
void query_part(const NearestBackward& op, index_t group, index_t column, index_t at) {
  float* out = op.d_queries + (group * op.columns + column) * op.dim + at;
  VecF sum[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) sum[v] = load<VecF>(out + v * kLanes);
  for (index_t set = group * op.sets; set < (group + 1) * op.sets; ++set) {
    index_t source;
    const float share = share_of(op, set, column, source);
    if (share == 0.0f) continue;
    const float* row = op.rows + (op.begin[set] + source) * op.dim + at;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[v] += share * load<VecF>(row + v * kLanes);
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) store(out + v * kLanes, sum[v]);
}

template <int V>
void row_part(const NearestBackward& op, index_t set, index_t at) {
  const float* query = op.queries + set / op.sets * op.columns * op.dim + at;
  float* rows = op.d_rows + op.begin[set] * op.dim + at;
  for (index_t column = 0; column < op.columns; ++column, query += op.dim) {
    index_t source;
    const float share = share_of(op, set, column, source);
    if (share == 0.0f) continue;
    float* out = rows + source * op.dim;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v)
      store(out + v * kLanes, load<VecF>(out + v * kLanes) + share * load<VecF>(query + v * kLanes));
  }
}

void queries(const NearestBackward& op, index_t group, index_t begin, index_t end, index_t at) {
  const bool whole = at + kVectors * kLanes <= op.dim;
  for (index_t column = begin; column < end; ++column) {
    if (whole) query_part<kVectors>(op, group, column, at);
    for (index_t d = whole ? op.dim : at; d < op.dim; d += kLanes)
      query_part<1>(op, group, column, d);
  }
}

void rows(const NearestBackward& op, index_t set, index_t at) {
  if (at + kVectors * kLanes <= op.dim) return row_part<kVectors>(op, set, at);
  for (; at < op.dim; at += kLanes) row_part<1>(op, set, at);
}

}  // namespace

extern const NearestOps nearest_ops = {kVectors * kLanes, forward, queries, rows};

}  // namespace SEDE_ISA
}  // namespace sede
