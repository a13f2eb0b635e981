// The nearest source of each query fragment, and the gradients: sums of the rows that were nearest.
#include "late_interaction_api.h"

#include "pack.h"

namespace sede {
namespace SEDE_ISA {
namespace {

constexpr int kVectors = 8;  // of a fragment, held in registers
constexpr index_t kPart = kPanel<float>;
constexpr index_t kDepth = 128;  // elements of a panel that stay in L1 for all sources of a set

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

// V vectors of every row, or single elements.
template <class Vec, int V>
void query_part(const NearestBackward& op, index_t group, index_t column, index_t at) {
  float* out = op.d_queries + (group * op.columns + column) * op.dim + at;
  constexpr index_t width = sizeof(Vec) / sizeof(float);
  Vec sum[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) sum[v] = load<Vec>(out + v * width);
  for (index_t set = group * op.sets; set < (group + 1) * op.sets; ++set) {
    index_t source;
    const float share = share_of(op, set, column, source);
    if (share == 0.0f) continue;
    const float* row = op.rows + (op.begin[set] + source) * op.dim + at;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[v] += share * load<Vec>(row + v * width);
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) store(out + v * width, sum[v]);
}

template <class Vec, int V>
void row_part(const NearestBackward& op, index_t set, index_t at) {
  constexpr index_t width = sizeof(Vec) / sizeof(float);
  const float* query = op.queries + set / op.sets * op.columns * op.dim + at;
  float* rows = op.d_rows + op.begin[set] * op.dim + at;
  for (index_t column = 0; column < op.columns; ++column, query += op.dim) {
    index_t source;
    const float share = share_of(op, set, column, source);
    if (share == 0.0f) continue;
    float* out = rows + source * op.dim;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v)
      store(out + v * width, load<Vec>(out + v * width) + share * load<Vec>(query + v * width));
  }
}

// part(vector, count, at): what is taken together of the elements from `at` on.
template <class F>
SEDE_INLINE void in_parts(index_t dim, index_t at, F part) {
  if (at + kVectors * kLanes <= dim)
    return part(VecF{}, std::integral_constant<int, kVectors>(), at);
  for (; at + kLanes <= dim; at += kLanes) part(VecF{}, std::integral_constant<int, 1>(), at);
  for (; at < dim; ++at) part(0.0f, std::integral_constant<int, 1>(), at);
}

void queries(const NearestBackward& op, index_t group, index_t begin, index_t end, index_t at) {
  for (index_t column = begin; column < end; ++column)
    in_parts(op.dim, at, [&](auto like, auto count, index_t d) {
      query_part<decltype(like), decltype(count)::value>(op, group, column, d);
    });
}

void rows(const NearestBackward& op, index_t set, index_t at) {
  in_parts(op.dim, at, [&](auto like, auto count, index_t d) {
    row_part<decltype(like), decltype(count)::value>(op, set, d);
  });
}

void pack(const float* query, index_t count, index_t dim, float* out) {
  for (index_t first = 0; first < count; first += kPart, query += kPart * dim, out += kPart * dim)
    pack_panel(query, dim, count - first < kPart ? count - first : kPart, dim, out);
}

void panels(const LateSets& op, index_t set, const float* packed, index_t count, float* s, float* score,
            std::int32_t* source) {
  const index_t begin = 0, rows = op.source_lengths ? op.source_lengths[set] : op.sources;
  const float* at = op.source + set * op.sources * op.dim;
  for (index_t first = 0; first < count; first += kPart, packed += kPart * op.dim) {
    const index_t some = count - first < kPart ? count - first : kPart;
    const Nearest found{s, 1, kPart, &begin, &rows, score + first, source + first, kPart};
    similarities(at, op.dim, 1, rows, packed, op.dim, some, kDepth, s);
    forward(found, 0, 0, some > kLanes ? kPart : kLanes);
  }
}

}  // namespace

extern const NearestOps nearest_ops = {kVectors * kLanes, kPart, forward, queries, rows, pack, panels};

}  // namespace SEDE_ISA
}  // namespace sede
