// Region-word similarity of one pair after another. Sources run along vector lanes, contexts are
// formed outright: with few queries a source set that costs less than the Gram matrix of the sources.
#include "cross_pairs_api.h"

#include "erase_row.h"
#include "gemm.h"

namespace sede {
namespace SEDE_ISA {
namespace {

constexpr float kNormEps = 1e-8f, kCosineEps = 1e-8f, kLeak = 0.1f;
constexpr float kLog2E = 1.44269504088896341f;

SEDE_INLINE VecF leaky(VecF s) { return s > 0.0f ? s : s * kLeak; }

// Sum of all lanes, halving: fewer steps than lanes.
SEDE_INLINE float total(VecF x) {
  constexpr int kHalf = kLanes / 2;
  float lanes[kLanes];
  store(lanes, x);
#pragma GCC unroll 4
  for (int half = kHalf; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int n = 0; n < half; ++n) lanes[n] += lanes[n + half];
  return lanes[0];
}

// out[Q][S] = dot products of Q rows with S rows.
template <int Q, int S>
SEDE_INLINE void dot_tile(const float* query, const float* source, index_t dim, float* out,
                          index_t stride) {
  VecF sum[Q][S];
#pragma GCC unroll 2
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) sum[q][s] = VecF{};
  for (index_t d = 0; d < dim; d += kLanes) {
    VecF right[S];
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) right[s] = load<VecF>(source + s * dim + d);
#pragma GCC unroll 2
    for (int q = 0; q < Q; ++q) {
      const VecF left = load<VecF>(query + q * dim + d);
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) sum[q][s] += left * right[s];
    }
  }
#pragma GCC unroll 2
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) out[q * stride + s] = total(sum[q][s]);
}

template <int Q>
SEDE_INLINE void dot_row(const float* query, const float* source, index_t sources, index_t dim,
                         float* out, index_t stride) {
  index_t s = 0;
  for (; s + 4 <= sources; s += 4) dot_tile<Q, 4>(query, source + s * dim, dim, out + s, stride);
  for (; s < sources; ++s) dot_tile<Q, 1>(query, source + s * dim, dim, out + s, stride);
}

struct Scratch {
  float *s, *softmax, *a, *products;        // [queries][padded sources]
  std::int32_t *kept, *keys;                // the same, [padded sources]
  float *norm, *inner;                      // [padded sources]
  float *sim, *share, *size, *query_norm, *context_norm, *kept_sum, *d_square;  // [padded queries]
  float* context;                           // [queries][dim]
  index_t bytes;

  Scratch(char* base, const CrossPairs& op) {
    const index_t n = whole_vectors(op.sources), m = whole_vectors(op.queries);
    index_t at = 0;
    auto take = [&](auto*& out, index_t count) {
      out = (decltype(+out))(base ? base + at : nullptr);
      at += count * 4;
    };
    take(s, m * n);
    take(softmax, m * n);
    take(products, m * n);
    if (op.erase)
      take(a, m * n);
    else
      a = softmax;
    take(kept, op.erase ? m * n : 0);
    take(keys, n);
    take(norm, n);
    take(inner, n);
    float** const of_queries[] = {&sim, &share, &size, &query_norm, &context_norm, &kept_sum, &d_square};
    for (float** p : of_queries) take(*p, m);
    take(context, op.queries * op.dim);
    bytes = at;
  }
};

struct One {
  const CrossPairs& op;
  const Scratch& t;
  const float *x, *y;  // sources, queries
  index_t n, m, padded;

  One(const CrossPairs& call, const Scratch& scratch, index_t row, index_t pair)
      : op(call), t(scratch) {
    const index_t xs = row * op.source_sets + (op.source_sets == 1 ? 0 : pair);
    const index_t ys = row * op.query_sets + (op.query_sets == 1 ? 0 : pair);
    x = op.source + xs * op.sources * op.dim;
    y = op.query + ys * op.queries * op.dim;
    n = op.source_lengths[xs];
    m = op.query_lengths[ys];
    padded = whole_vectors(n);
  }

  // out[j][i] = left_j . x_i, zero in the padding.
  void dots(const float* left, float* out) const {
    index_t j = 0;
    for (; j + 2 <= m; j += 2) dot_row<2>(left + j * op.dim, x, n, op.dim, out + j * padded, padded);
    for (; j < m; ++j) dot_row<1>(left + j * op.dim, x, n, op.dim, out + j * padded, padded);
    for (j = 0; j < m; ++j)
      for (index_t i = n; i < padded; ++i) out[j * padded + i] = 0.0f;
  }

  float length(const float* row) const {
    VecF sum{};
    for (index_t d = 0; d < op.dim; d += kLanes) {
      const VecF v = load<VecF>(row + d);
      sum += v * v;
    }
    return __builtin_sqrtf(total(sum));
  }

  void norms() const {
    for (index_t i = 0; i < padded; i += kLanes) {
      VecF sum{};
      for (index_t j = 0; j < m; ++j) {
        const VecF v = leaky(load<VecF>(t.s + j * padded + i));
        sum += v * v;
      }
      for (int lane = 0; lane < kLanes; ++lane) t.norm[i + lane] = __builtin_sqrtf(sum[lane]);
    }
  }

  void attend(index_t j) const {
    float *s = t.s + j * padded, *p = t.softmax + j * padded;
    VecF peaks = splat<VecF>(kNegInf<float>), sums{};
    for (index_t i = 0; i < padded; i += kLanes) {
      const VecF v = leaky(load<VecF>(s + i)) * (op.smoothing / (load<VecF>(t.norm + i) + kNormEps));
      store(p + i, v);
      peaks = (v > peaks) & lanes_below(i, n) ? v : peaks;
    }
    float peak = kNegInf<float>;
    for (int lane = 0; lane < kLanes; ++lane) peak = peaks[lane] > peak ? peaks[lane] : peak;
    for (index_t i = 0; i < padded; i += kLanes) {
      const VecF e = exp2_fast((load<VecF>(p + i) - peak) * kLog2E);
      const VecF valid = (VecF)((VecI)e & lanes_below(i, n));
      store(p + i, valid);
      sums += valid;
    }
    const float share = 1.0f / total(sums);
    for (index_t i = 0; i < padded; i += kLanes) store(p + i, load<VecF>(p + i) * share);
    if (!op.erase) return;
    std::int32_t* kept = t.kept + j * padded;
    float sum = keep_row(op.rule, p, n, padded, kept, t.keys);
    if (!op.rule.renormalize || sum == 0.0f) sum = 1.0f;
    t.kept_sum[j] = sum;
    for (index_t i = 0; i < padded; i += kLanes)
      store(t.a + j * padded + i,
            (VecF)((VecI)load<VecF>(p + i) & load<VecI>(kept + i)) / splat<VecF>(sum));
  }

  void similarities() const {
    dots(y, t.s);
    norms();
    for (index_t j = 0; j < m; ++j) attend(j);
    product(m, op.dim, t.a, padded, 1, x, op.dim, t.context, op.dim, n, false);
    for (index_t j = 0; j < m; ++j) {
      VecF sum{};
      for (index_t i = 0; i < padded; i += kLanes)
        sum += load<VecF>(t.a + j * padded + i) * load<VecF>(t.s + j * padded + i);
      t.query_norm[j] = length(y + j * op.dim);
      t.context_norm[j] = length(t.context + j * op.dim);
      t.size[j] = t.query_norm[j] * t.context_norm[j];
      t.sim[j] = total(sum) / (t.size[j] < kCosineEps ? kCosineEps : t.size[j]);
    }
  }

  float peak() const {
    float top = kNegInf<float>;
    for (index_t j = 0; j < m; ++j) top = t.sim[j] > top || t.sim[j] != t.sim[j] ? t.sim[j] : top;
    return top;
  }

  // Fills share with d result / d sim_j; the result.
  float aggregate() const {
    const float top = peak();
    float sum = 0.0f, whole = 0.0f;
    for (index_t j = 0; j < m; ++j) {
      float share = 1.0f;
      if (op.aggregate == Aggregate::lse)
        share = __builtin_expf(op.aggregate_scale * (t.sim[j] - top));
      if (op.aggregate == Aggregate::max) share = t.sim[j] == top ? 1.0f : 0.0f;
      t.share[j] = share;
      whole += share;
      sum += t.sim[j];
    }
    if (op.aggregate != Aggregate::sum)
      for (index_t j = 0; j < m; ++j) t.share[j] /= whole;
    switch (op.aggregate) {
      case Aggregate::lse: return top + __builtin_logf(whole) / op.aggregate_scale;
      case Aggregate::max: return top;
      case Aggregate::mean: return sum / float(m);
      default: return sum;
    }
  }

  float result() const {
    if (n == 0 || m == 0) return 0.0f;
    similarities();
    return aggregate();
  }

  // Turns products (source times context) into the gradient of the softmax's argument, and fills
  // d_square and the query's factor in its own gradient (in query_norm).
  void query_backward(index_t j, float g) const {
    const bool free = t.size[j] > kCosineEps;
    const float radial = free ? g * t.sim[j] : 0.0f;
    const float d_dot = g / (free ? t.size[j] : kCosineEps);
    const float square = t.context_norm[j] * t.context_norm[j];
    t.d_square[j] = free ? -radial / square : 0.0f;  // twice d / d |context|^2
    t.query_norm[j] = free ? -radial / (t.query_norm[j] * t.query_norm[j]) : 0.0f;
    float *d = t.products + j * padded, *s = t.s + j * padded;
    const float *a = t.a + j * padded, *p = t.softmax + j * padded;
    VecF sums{};
    for (index_t i = 0; i < padded; i += kLanes) {
      const VecF v = d_dot * load<VecF>(s + i) + t.d_square[j] * load<VecF>(d + i);
      store(d + i, v);
      sums += v * load<VecF>(a + i);
    }
    float across = total(sums);
    if (op.erase) {
      const float mean = op.rule.renormalize ? across : 0.0f;
      sums = VecF{};
      for (index_t i = 0; i < padded; i += kLanes) {
        const VecF kept = (VecF)((VecI)((load<VecF>(d + i) - mean) / splat<VecF>(t.kept_sum[j])) &
                                 load<VecI>(t.kept + j * padded + i));
        store(d + i, kept);
        sums += kept * load<VecF>(p + i);
      }
      across = total(sums);
    }
    for (index_t i = 0; i < padded; i += kLanes) {
      const VecF v = op.smoothing * load<VecF>(p + i) * (load<VecF>(d + i) - across);
      store(d + i, v);
      store(t.inner + i, load<VecF>(t.inner + i) + v * leaky(load<VecF>(s + i)));
    }
    t.share[j] = d_dot;
  }

  // From the softmax's argument to S: products becomes dS.
  void score_backward() const {
    for (index_t i = 0; i < padded; i += kLanes) {
      const VecF norm = load<VecF>(t.norm + i), scale = 1.0f / (norm + kNormEps);
      const VecF inner = norm > 0.0f ? load<VecF>(t.inner + i) * scale * scale / norm : VecF{};
      for (index_t j = 0; j < m; ++j) {
        const index_t at = j * padded + i;
        const VecF s = load<VecF>(t.s + at);
        const VecF d = load<VecF>(t.products + at) * scale - leaky(s) * inner;
        store(t.products + at, t.share[j] * load<VecF>(t.a + at) + (s > 0.0f ? d : d * kLeak));
      }
    }
  }

  void backward(float g) const {
    if (n == 0 || m == 0) return;
    similarities();
    aggregate();
    dots(t.context, t.products);
    for (index_t i = 0; i < padded; i += kLanes) store(t.inner + i, VecF{});
    for (index_t j = 0; j < m; ++j) query_backward(j, g * t.share[j]);
    score_backward();
    const index_t dim = op.dim;
    if (op.d_source) {
      float* d_x = op.d_source + (x - op.source);
      product(n, dim, t.products, 1, padded, y, dim, d_x, dim, m, true);
      for (index_t j = 0; j < m; ++j)  // a becomes what a context's gradient gives each source
        for (index_t i = 0; i < padded; i += kLanes)
          store(t.a + j * padded + i, load<VecF>(t.a + j * padded + i) * t.d_square[j]);
      product(n, dim, t.a, 1, padded, t.context, dim, d_x, dim, m, true);
    }
    if (op.d_query) {
      float* d_y = op.d_query + (y - op.query);
      product(m, dim, t.products, padded, 1, x, dim, d_y, dim, n, true);
      for (index_t j = 0; j < m; ++j)
        for (index_t d = 0; d < dim; d += kLanes)
          store(d_y + j * dim + d,
                load<VecF>(d_y + j * dim + d) + t.query_norm[j] * load<VecF>(y + j * dim + d));
    }
  }
};

index_t scratch(const CrossPairs& op) { return Scratch(nullptr, op).bytes; }

void forward(const CrossPairs& op, index_t row, char* memory) {
  const Scratch t(memory, op);
  for (index_t pair = 0; pair < op.pairs; ++pair)
    op.out[row * op.pairs + pair] = One(op, t, row, pair).result();
}

void backward(const CrossPairs& op, index_t row, char* memory) {
  const Scratch t(memory, op);
  for (index_t pair = 0; pair < op.pairs; ++pair)
    One(op, t, row, pair).backward(op.grad[row * op.pairs + pair]);
}

}  // namespace

extern const CrossPairsOps cross_pairs_ops = {scratch, forward, backward};

}  // namespace SEDE_ISA
}  // namespace sede
