// Norm, softmax, erasing, cosine by the Gram form and aggregation of one row set with every lane.
// Pairs in which that form loses digits are marked and have no gradient here: the caller computes
// them as chosen pairs.
#include "cross_attention_api.h"

#include "cross_attention_math.h"
#include "erase_lanes.h"

namespace sede {
namespace SEDE_ISA {
namespace {

SEDE_INLINE VecF natural_log(VecF x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int n = 0; n < kLanes; ++n) lanes[n] = __builtin_logf(lanes[n]);
  return load<VecF>(lanes);
}
SEDE_INLINE float lane_total(VecF x) {
  float lanes[kLanes];
  store(lanes, x);
  return float(lane_sum(low_half(lanes) + high_half(lanes)));
}

// Scratch of one vector of lanes against one row set: n sources, m queries.
struct Scratch {
  VecF *norm, *inner;                          // [n]
  VecF *dot, *context, *size, *sim, *d_square, *kept_sum;  // [m]
  VecF *softmax, *a, *gram_a;                  // [m][n]
  VecI* kept;                                  // [m][n], with erasing
  float* row;
  std::int32_t *keep, *keys;
  index_t bytes;

  Scratch(char* base, index_t n, index_t m, bool erase) {
    index_t at = 0;
    auto take = [&](index_t vectors) {
      char* p = base ? base + at : nullptr;
      at += vectors * SEDE_VEC_BYTES;
      return p;
    };
    VecF** const of_sources[] = {&norm, &inner};
    VecF** const of_queries[] = {&dot, &context, &size, &sim, &d_square, &kept_sum};
    for (VecF** p : of_sources) *p = (VecF*)take(n);
    for (VecF** p : of_queries) *p = (VecF*)take(m);
    softmax = (VecF*)take(n * m);
    a = erase ? (VecF*)take(n * m) : softmax;
    gram_a = (VecF*)take(n * m);
    kept = (VecI*)take(erase ? n * m : 0);
    const index_t vectors = whole_vectors(n) / kLanes;
    row = (float*)take(vectors);
    keep = (std::int32_t*)take(vectors);
    keys = (std::int32_t*)take(vectors);
    bytes = at;
  }
};

// One row set and one vector of lanes. Sources are the lane sets' fragments (LANE_SOURCE) or rows.
template <bool LANE_SOURCE>
struct Pair {
  const CrossAttention& op;
  index_t set, first, n, m;  // first row; sources, queries
  index_t vector;            // offset of the lanes
  VecI lengths, present;
  Scratch t;
  VecI lost{};               // lanes with a context that cancels

  Pair(const CrossAttention& call, index_t set_, index_t vector_, char* memory)
      : op(call),
        set(set_),
        first(call.starts[set_]),
        n(LANE_SOURCE ? call.fragments : call.starts[set_ + 1] - first),
        m(LANE_SOURCE ? call.starts[set_ + 1] - first : call.fragments),
        vector(vector_),
        t(memory, n, m, call.erase) {
    for (int i = 0; i < kLanes; ++i) lengths[i] = std::int32_t(op.lane_lengths[vector + i]);
    present = lengths > 0;
  }

  SEDE_INLINE index_t at(index_t i, index_t j) const {
    const index_t row = first + (LANE_SOURCE ? j : i), fragment = LANE_SOURCE ? i : j;
    return (row * op.fragments + fragment) * op.lanes + vector;
  }
  SEDE_INLINE const float* s(index_t i, index_t j) const { return op.s + at(i, j); }
  SEDE_INLINE VecI valid_source(index_t i) const {
    return LANE_SOURCE ? lengths > std::int32_t(i) : ~VecI{};
  }
  SEDE_INLINE VecI valid_query(index_t j) const {
    return LANE_SOURCE ? ~VecI{} : lengths > std::int32_t(j);
  }
  SEDE_INLINE VecF gram(index_t i, index_t k) const {
    if (LANE_SOURCE) return load<VecF>(op.gram + (i * n + k) * op.lanes + vector);
    return splat<VecF>(op.gram[(set * op.row_gram + i) * op.row_gram + k]);
  }
  SEDE_INLINE VecF of_source(const float* values, index_t i) const {
    if (LANE_SOURCE) return load<VecF>(values + i * op.lanes + vector);
    return splat<VecF>(values[set * op.row_gram + i]);
  }
  SEDE_INLINE VecF query_norm(index_t j) const {
    if (LANE_SOURCE) return splat<VecF>(op.query_norm[first + j]);
    return load<VecF>(op.query_norm + j * op.lanes + vector);
  }

  void norms() {
    for (index_t i = 0; i < n; ++i) {
      VecF sum{};
      for (index_t j = 0; j < m; ++j) {
        const VecF x = leaky(load<VecF>(s(i, j)));
        sum += x * x;
      }
      t.norm[i] = root(sum);
    }
  }

  void attend(index_t j) {
    VecF* p = t.softmax + j * n;
    VecF peak = splat<VecF>(kNegInf<float>), sum{};
    for (index_t i = 0; i < n; ++i) {
      const VecF x = leaky(load<VecF>(s(i, j))) * (op.smoothing / (t.norm[i] + kNormEps));
      p[i] = x;
      peak = (x > peak) & valid_source(i) ? x : peak;
    }
    for (index_t i = 0; i < n; ++i) {
      const VecF e = exp2_fast((p[i] - peak) * kLog2E);
      p[i] = valid_source(i) ? e : VecF{};
      sum += p[i];
    }
    const VecF share = sum == 0.0f ? VecF{} : 1.0f / sum;
    for (index_t i = 0; i < n; ++i) p[i] *= share;
    if (op.erase) erase(j);
  }

  void erase(index_t j) {
    const VecI counts = LANE_SOURCE ? lengths : splat<VecI>(std::int32_t(n));
    VecF total;
    if (!keep_lanes(op.rule, t.softmax + j * n, n, counts, t.kept + j * n, &total))
      total = keep_rows(j);
    if (!op.rule.renormalize) total = VecF{};
    t.kept_sum[j] = total == 0.0f ? splat<VecF>(1.0f) : total;
    for (index_t i = 0; i < n; ++i) {
      const VecF p = (VecF)((VecI)t.softmax[j * n + i] & t.kept[j * n + i]);
      t.a[j * n + i] = p / t.kept_sum[j];
    }
  }

  // Row by row with the code of attention_erase: lanes to rows and back. The sums of what is kept.
  VecF keep_rows(index_t j) {
    const index_t padded = whole_vectors(n);
    float total[kLanes];
    for (index_t lane = 0; lane < kLanes; ++lane) {
      for (index_t i = 0; i < padded; ++i)
        t.row[i] = i < n ? ((const float*)(t.softmax + j * n + i))[lane] : 0.0f;
      const index_t length = LANE_SOURCE ? lengths[lane] : n;
      total[lane] = keep_row(op.rule, t.row, length, padded, t.keep, t.keys);
      for (index_t i = 0; i < n; ++i) ((std::int32_t*)(t.kept + j * n + i))[lane] = t.keep[i];
    }
    return load<VecF>(total);
  }

  // gram_a = G a for Q queries at once: one load of G serves them all.
  template <int Q>
  void apply_gram(index_t j) {
    const VecF* a = t.a + j * n;
    for (index_t i = 0; i < n; ++i) {
      VecF sum[Q] = {};
      for (index_t k = 0; k < n; ++k) {
        const VecF g = gram(i, k);
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) sum[q] += g * a[q * n + k];
      }
      for (int q = 0; q < Q; ++q) t.gram_a[(j + q) * n + i] = sum[q];
    }
  }

  void cosine(index_t j) {
    VecF dot{}, square{}, reach{}, mass{};
    for (index_t i = 0; i < n; ++i) {
      const VecF a = t.a[j * n + i];
      dot += a * load<VecF>(s(i, j));
      square += a * t.gram_a[j * n + i];
      reach += a * of_source(op.source_norm, i);
      mass += a * a * of_source(op.source_mass, i);
    }
    lost |= cancels(square, reach, mass) & valid_query(j) & present;
    t.dot[j] = dot;
    t.context[j] = root(square < 0.0f ? VecF{} : square);  // rounding can leave a tiny negative
    t.size[j] = query_norm(j) * t.context[j];
    t.sim[j] = dot / (t.size[j] < kCosineEps ? splat<VecF>(kCosineEps) : t.size[j]);
  }

  void similarities() {
    norms();
    for (index_t j = 0; j < m; ++j) attend(j);
    index_t j = 0;
    for (; j + 4 <= m; j += 4) apply_gram<4>(j);
    for (; j < m; ++j) apply_gram<1>(j);
    for (j = 0; j < m; ++j) cosine(j);
  }

  VecF peak() const {
    VecF peak = splat<VecF>(kNegInf<float>);
    for (index_t j = 0; j < m; ++j) {
      const VecF x = t.sim[j];
      peak = ((x > peak) | (x != x)) & valid_query(j) ? x : peak;
    }
    return peak;
  }
  VecF count() const {
    VecF count{};
    for (index_t j = 0; j < m; ++j) count += valid_query(j) ? splat<VecF>(1.0f) : VecF{};
    return count;
  }
  SEDE_INLINE VecF weight(index_t j, VecF top) const {
    const VecF e = exp2_fast((t.sim[j] - top) * (op.aggregate_scale * kLog2E));
    return valid_query(j) ? e : VecF{};
  }

  void total() {
    VecF result{};
    const VecF top = peak();
    for (index_t j = 0; j < m; ++j) {
      if (op.aggregate == Aggregate::lse)
        result += weight(j, top);
      else
        result += valid_query(j) ? t.sim[j] : VecF{};
    }
    if (op.aggregate == Aggregate::lse) result = top + natural_log(result) / op.aggregate_scale;
    if (op.aggregate == Aggregate::max) result = top;
    if (op.aggregate == Aggregate::mean) result /= count();
    store(op.out + set * op.lanes + vector, present ? result : VecF{});
    store(op.lost + set * op.lanes + vector, lost);
  }

  // d total / d sim_j times the incoming gradient, one query after another.
  template <class F>
  void spread_grad(F use) {
    const VecF g = present & ~lost ? load<VecF>(op.grad + set * op.lanes + vector) : VecF{};
    const VecF top = peak();
    VecF whole{};
    for (index_t j = 0; j < m; ++j) {
      if (op.aggregate == Aggregate::lse) whole += weight(j, top);
      if (op.aggregate == Aggregate::max)
        whole += (t.sim[j] == top) & valid_query(j) ? splat<VecF>(1.0f) : VecF{};
    }
    if (op.aggregate == Aggregate::mean) whole = count();
    if (op.aggregate == Aggregate::sum) whole = splat<VecF>(1.0f);
    const VecF share = whole == 0.0f ? VecF{} : g / whole;
    for (index_t j = 0; j < m; ++j) {
      VecF part = share;
      if (op.aggregate == Aggregate::lse) part *= weight(j, top);
      if (op.aggregate == Aggregate::max) part = t.sim[j] == top ? part : VecF{};
      use(j, valid_query(j) ? part : VecF{});
    }
  }

  // Fills d_square, turns dot into its gradient and gram_a into that of the softmax's argument.
  void query_backward(index_t j, VecF g, float* d_norm) {
    const VecI free = t.size[j] > kCosineEps;
    const VecF radial = free ? g * t.sim[j] : VecF{};
    const VecF norm = query_norm(j), context = t.context[j];
    const VecF own = free ? -radial / (norm * norm) : VecF{};
    if (LANE_SOURCE)
      d_norm[first + j] += lane_total(own);
    else
      store(d_norm + j * op.lanes + vector, load<VecF>(d_norm + j * op.lanes + vector) + own);
    t.d_square[j] = free ? -0.5f * radial / (context * context) : VecF{};
    t.dot[j] = g / (free ? t.size[j] : splat<VecF>(kCosineEps));
    VecF *d_a = t.gram_a + j * n, *a = t.a + j * n, *p = t.softmax + j * n;
    VecF across{};
    for (index_t i = 0; i < n; ++i) {
      d_a[i] = t.dot[j] * load<VecF>(s(i, j)) + 2.0f * t.d_square[j] * d_a[i];
      across += d_a[i] * a[i];
    }
    if (op.erase) {
      const VecF mean = op.rule.renormalize ? across : VecF{};
      across = VecF{};
      for (index_t i = 0; i < n; ++i) {
        const VecF d = (d_a[i] - mean) / t.kept_sum[j];
        d_a[i] = t.kept[j * n + i] ? d : VecF{};
        across += d_a[i] * p[i];
      }
    }
    for (index_t i = 0; i < n; ++i) {
      d_a[i] = op.smoothing * p[i] * (d_a[i] - across);
      t.inner[i] += d_a[i] * leaky(load<VecF>(s(i, j)));
    }
  }

  void gram_backward(float* d_gram) {
    for (index_t i = 0; i < n; ++i)
      for (index_t k = 0; k <= i; ++k) {
        VecF sum{};
        for (index_t j = 0; j < m; ++j) sum += t.d_square[j] * t.a[j * n + i] * t.a[j * n + k];
        if (k == i) sum *= 0.5f;
        if (LANE_SOURCE) {
          float* out = d_gram + (i * n + k) * op.lanes + vector;
          store(out, load<VecF>(out) + sum);
        } else {
          d_gram[(set * op.row_gram + i) * op.row_gram + k] += lane_total(sum);
        }
      }
  }

  void backward(float* d_gram, float* d_norm) {
    for (index_t i = 0; i < n; ++i) t.inner[i] = VecF{};
    spread_grad([&](index_t j, VecF g) { query_backward(j, g, d_norm); });
    if (d_gram) gram_backward(d_gram);
    // The norm takes away all that goes along with it: of a single query nearly everything, which is
    // told exactly and not by a difference.
    const VecI single = LANE_SOURCE ? splat<VecI>(std::int32_t(m == 1 ? -1 : 0)) : lengths == 1;
    for (index_t i = 0; i < n; ++i) {
      const VecF scale = 1.0f / (t.norm[i] + kNormEps);
      const VecF inner = t.norm[i] > 0.0f ? t.inner[i] * scale * scale / t.norm[i] : VecF{};
      for (index_t j = 0; j < m; ++j) {
        const VecF x = load<VecF>(s(i, j));
        const VecF whole = t.gram_a[j * n + i] * scale;
        const VecF d = single ? whole * scale * kNormEps : whole - leaky(x) * inner;
        store(op.ds + at(i, j), t.dot[j] * t.a[j * n + i] + (x > 0.0f ? d : d * kLeak));
      }
    }
  }
};

template <bool LANE_SOURCE>
void forward_set(const CrossAttention& op, index_t set, char* memory) {
  for (index_t v = 0; v < op.lanes; v += kLanes) {
    Pair<LANE_SOURCE> pair(op, set, v, memory);
    pair.similarities();
    pair.total();
  }
}

template <bool LANE_SOURCE>
void backward_set(const CrossAttention& op, index_t set, index_t block, char* memory) {
  const index_t plane = op.fragments * op.lanes;
  float* d_gram = op.d_gram;
  if (LANE_SOURCE && d_gram) d_gram += block * plane * op.fragments;
  float* d_norm = op.d_norm + (LANE_SOURCE ? 0 : block * plane);
  for (index_t v = 0; v < op.lanes; v += kLanes) {
    Pair<LANE_SOURCE> pair(op, set, v, memory);
    pair.similarities();
    pair.backward(d_gram, d_norm);
    store(op.lost + set * op.lanes + v, pair.lost);
  }
}

index_t scratch(const CrossAttention& op, index_t longest) {
  const index_t n = op.lane_source ? op.fragments : longest;
  const index_t m = op.lane_source ? longest : op.fragments;
  return Scratch(nullptr, n, m, op.erase).bytes;
}

void forward(const CrossAttention& op, index_t set, char* memory) {
  if (op.starts[set] == op.starts[set + 1] || op.fragments == 0) {
    for (index_t v = 0; v < op.lanes; ++v) {
      op.out[set * op.lanes + v] = 0.0f;
      op.lost[set * op.lanes + v] = 0;
    }
  } else if (op.lane_source) {
    forward_set<true>(op, set, memory);
  } else {
    forward_set<false>(op, set, memory);
  }
}

void backward(const CrossAttention& op, index_t set, index_t block, char* memory) {
  if (op.starts[set] == op.starts[set + 1] || op.fragments == 0) {
    for (index_t v = 0; v < op.lanes; ++v) op.lost[set * op.lanes + v] = 0;
    return;
  }
  if (op.lane_source)
    backward_set<true>(op, set, block, memory);
  else
    backward_set<false>(op, set, block, memory);
}

}  // namespace

extern const CrossOps cross_attention_ops = {scratch, forward, backward};

}  // namespace SEDE_ISA
}  // namespace sede
