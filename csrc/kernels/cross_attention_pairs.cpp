// Region-word similarity of one pair of sets after another, with the side that has more fragments
// along vector lanes.
#include "cross_attention_pairs_queries.h"
#include "cross_attention_pairs_sources.h"

namespace sede {
namespace SEDE_ISA {
namespace {

// Bytes of a thread: lengths of the queries, then what either way needs.
index_t scratch(const CrossAttentionPairs& op) {
  const PairOfSets largest{nullptr, nullptr, nullptr, op.sources, op.queries, nullptr, nullptr};
  Arrays norms{nullptr}, first{nullptr}, second{nullptr};
  float* unused;
  norms.take(op.queries, unused);
  const SourceLanes one(op, largest, first);
  const QueryLanes other(op, largest, second);
  return norms.bytes + (first.bytes > second.bytes ? first.bytes : second.bytes);
}

// Uses a pair taken one way, unless that way would lose digits.
template <class Way, class F>
bool take(const CrossAttentionPairs& op, const PairOfSets& of, char* memory, index_t pair, F use) {
  Arrays arrays{memory};
  const Way one(op, of, arrays);
  const bool right = one.similarities();
  if (right) use(one, pair);
  return right;
}

template <class F>
void each_pair(const CrossAttentionPairs& op, index_t row, char* memory, F use) {
  Arrays norms{memory};
  float* query_norm;
  norms.take(op.queries, query_norm);
  char* rest = memory + norms.bytes;
  for (index_t pair = 0; pair < op.pairs; ++pair) {
    const index_t xs = row * op.source_sets + (op.source_sets == 1 ? 0 : pair);
    const index_t ys = row * op.query_sets + (op.query_sets == 1 ? 0 : pair);
    const index_t x = xs * op.sources * op.dim, y = ys * op.queries * op.dim;
    const PairOfSets of{op.source + x,
                        op.query + y,
                        query_norm,
                        op.source_lengths[xs],
                        op.query_lengths[ys],
                        op.d_source ? op.d_source + x : nullptr,
                        op.d_query ? op.d_query + y : nullptr};
    if (pair == 0 || op.query_sets != 1) {
      row_norms(of.y, of.m, op.dim, query_norm);
      for (index_t j = of.m; j < whole_vectors(of.m); ++j) query_norm[j] = 0.0f;
    }
    if (of.n == 0 || of.m == 0) {
      if (op.out) op.out[row * op.pairs + pair] = 0.0f;
    } else if (of.m <= of.n || op.contexts || !take<QueryLanes>(op, of, rest, pair, use)) {
      take<SourceLanes>(op, of, rest, pair, use);
    }
  }
}

void forward(const CrossAttentionPairs& op, index_t row, char* memory) {
  float* out = op.out + row * op.pairs;
  each_pair(op, row, memory, [=](const auto& one, index_t pair) { out[pair] = one.result(); });
}

void backward(const CrossAttentionPairs& op, index_t row, char* memory) {
  const float* grad = op.grad + row * op.pairs;
  each_pair(op, row, memory, [=](const auto& one, index_t pair) { one.backward(grad[pair]); });
}

}  // namespace

extern const CrossAttentionPairsOps cross_attention_pairs_ops = {scratch, forward, backward};

}  // namespace SEDE_ISA
}  // namespace sede
