// A pair with its queries along vector lanes: for more queries than sources. Contexts have their
// lengths by the Gram matrix of the few sources and are never formed, unless that loses digits.
// Arrays of one value a source and query are [vector of queries][source][lane].
#pragma once

#include "cross_attention_pairs.h"
#include "erase_lanes.h"

namespace sede {
namespace SEDE_ISA {
namespace {

struct QueryLanes {
  const CrossAttentionPairs& op;
  const PairOfSets& of;
  const index_t n, m, padded, width;  // sources, queries, both in whole vectors (padded: m, width: n)
  float *s, *softmax, *a, *gram_a;    // [padded / lanes][n][lanes]
  std::int32_t* kept;                 // the same
  float *gram, *norm, *mass, *inner;  // [n][n], [n], [n], [n][lanes]
  float *context_norm, *size, *sim, *share, *kept_sum, *d_square, *own;  // [padded]
  float* row;                         // [width], and:
  std::int32_t *keep, *keys;

  QueryLanes(const CrossAttentionPairs& call, const PairOfSets& sets, Arrays& memory)
      : op(call),
        of(sets),
        n(sets.n),
        m(sets.m),
        padded(whole_vectors(sets.m)),
        width(whole_vectors(sets.n)) {
    memory.take(n * padded, s, softmax, gram_a);
    a = softmax;
    kept = nullptr;
    if (op.erase) memory.take(n * padded, a, kept);
    memory.take(n * n, gram);
    memory.take(n, norm, mass);
    memory.take(n * kLanes, inner);
    memory.take(padded, context_norm, size, sim, share, kept_sum, d_square, own);
    memory.take(width, row, keep, keys);
  }

  SEDE_INLINE index_t block(index_t j) const { return j / kLanes * kLanes * n; }  // of query j

  void dots() const {
    for (index_t k = 0; k < padded * n; k += kLanes) store(s + k, VecF{});
    index_t j = 0;
    for (; j + 4 <= m; j += 4)
      dot_column<4>(of.x, n, of.y + j * op.dim, op.dim, s + block(j) + j % kLanes, kLanes);
    for (; j < m; ++j)
      dot_column<1>(of.x, n, of.y + j * op.dim, op.dim, s + block(j) + j % kLanes, kLanes);
    for (index_t i = 0; i < n; ++i) dot_column<1>(of.x, n, of.x + i * op.dim, op.dim, gram + i, n);
    for (index_t i = 0; i < n; ++i) {
      mass[i] = 0.0f;
      for (index_t k = 0; k < n; ++k) mass[i] += __builtin_fabsf(gram[i * n + k]);
    }
  }

  void norms() const {
    for (index_t i = 0; i < n; ++i) {
      VecF sum{};
      for (index_t v = 0; v < padded; v += kLanes) {
        const VecF x = leaky(load<VecF>(s + v * n + i * kLanes));
        sum += x * x;
      }
      norm[i] = __builtin_sqrtf(total(sum));
    }
  }

  void attend(index_t v) const {
    const VecF* score = (const VecF*)(s + v * n);
    VecF *p = (VecF*)(softmax + v * n), *used = (VecF*)(a + v * n);
    VecF peak = splat<VecF>(kNegInf<float>), sum{};
    for (index_t i = 0; i < n; ++i) {
      p[i] = leaky(score[i]) * (op.smoothing / (norm[i] + kNormEps));
      peak = p[i] > peak ? p[i] : peak;
    }
    for (index_t i = 0; i < n; ++i) {
      p[i] = exp2_fast((p[i] - peak) * kLog2E);
      sum += p[i];
    }
    const VecF part = 1.0f / sum;
    for (index_t i = 0; i < n; ++i) p[i] *= part;
    if (!op.erase) return;
    VecI* keeps = (VecI*)(kept + v * n);
    VecF left;
    if (!keep_lanes(op.rule, p, n, splat<VecI>(std::int32_t(n)), keeps, &left)) left = keep_rows(v);
    if (!op.rule.renormalize) left = VecF{};
    left = left == 0.0f ? splat<VecF>(1.0f) : left;
    store(kept_sum + v, left);
    for (index_t i = 0; i < n; ++i) used[i] = (VecF)((VecI)p[i] & keeps[i]) / left;
  }

  // Query by query, for rules that need the sources in order. The sums of what is kept.
  VecF keep_rows(index_t v) const {
    float sums[kLanes];
    for (index_t lane = 0; lane < kLanes; ++lane) {
      for (index_t i = 0; i < width; ++i)
        row[i] = i < n ? softmax[v * n + i * kLanes + lane] : 0.0f;
      sums[lane] = keep_row(op.rule, row, n, width, keep, keys);
      for (index_t i = 0; i < n; ++i) kept[v * n + i * kLanes + lane] = keep[i];
    }
    return load<VecF>(sums);
  }

  // Whether no context cancels.
  bool cosine(index_t v) const {
    const VecF *score = (const VecF*)(s + v * n), *used = (const VecF*)(a + v * n);
    VecF *applied = (VecF*)(gram_a + v * n), product{}, square{}, reach{}, of_mass{};
    for (index_t i = 0; i < n; ++i) {
      VecF sum{};
      for (index_t k = 0; k < n; ++k) sum += gram[i * n + k] * used[k];
      applied[i] = sum;
      product += used[i] * score[i];
      square += used[i] * sum;
      reach += used[i] * __builtin_sqrtf(gram[i * n + i]);
      of_mass += used[i] * used[i] * mass[i];
    }
    const bool kept_digits = !any(cancels(square, reach, of_mass) & lanes_below(v, m));
    square = square < 0.0f ? VecF{} : square;  // rounding can leave a tiny negative
    const VecF length = root(square), both = load<VecF>(of.query_norm + v) * length;
    store(context_norm + v, length);
    store(size + v, both);
    store(sim + v, product / (both < kCosineEps ? splat<VecF>(kCosineEps) : both));
    return kept_digits;
  }

  // Whether they are right: no context of the pair cancels.
  bool similarities() const {
    dots();
    norms();
    bool right = true;
    for (index_t v = 0; v < padded && right; v += kLanes) attend(v), right = cosine(v);
    return right;
  }

  float result() const { return aggregate(op, sim, m, share); }

  // Turns gram_a into the gradient of the softmax's argument and share into that of the dot product;
  // fills d_square and the queries' factors in their own gradients.
  void query_backward(index_t v, float g) const {
    const VecF *score = (const VecF*)(s + v * n), *used = (const VecF*)(a + v * n);
    const VecF* p = (const VecF*)(softmax + v * n);
    VecF *d = (VecF*)(gram_a + v * n), *pulls = (VecF*)inner;
    const VecF both = load<VecF>(size + v), length = load<VecF>(context_norm + v);
    const VecF own_length = load<VecF>(of.query_norm + v), grad = g * load<VecF>(share + v);
    const VecI free = both > kCosineEps;
    const VecF radial = free ? grad * load<VecF>(sim + v) : VecF{};
    const VecF d_dot = grad / (free ? both : splat<VecF>(kCosineEps));
    const VecF twice = free ? -radial / (length * length) : VecF{};
    store(own + v, free ? -radial / (own_length * own_length) : VecF{});
    store(d_square + v, twice);
    store(share + v, d_dot);
    VecF across{};
    for (index_t i = 0; i < n; ++i) {
      d[i] = d_dot * score[i] + twice * d[i];
      across += d[i] * used[i];
    }
    if (op.erase) {
      const VecF mean = op.rule.renormalize ? across : VecF{};
      const VecI* keeps = (const VecI*)(kept + v * n);
      across = VecF{};
      for (index_t i = 0; i < n; ++i) {
        d[i] = (VecF)((VecI)((d[i] - mean) / load<VecF>(kept_sum + v)) & keeps[i]);
        across += d[i] * p[i];
      }
    }
    for (index_t i = 0; i < n; ++i) {
      d[i] = op.smoothing * p[i] * (d[i] - across);
      pulls[i] += d[i] * leaky(score[i]);
    }
  }

  // From the softmax's argument to S: gram_a becomes dS.
  void score_backward() const {
    for (index_t i = 0; i < n; ++i) {
      const float scale = 1.0f / (norm[i] + kNormEps);
      const float pulled = total(load<VecF>(inner + i * kLanes));
      const float pull = norm[i] > 0.0f ? pulled * scale * scale / norm[i] : 0.0f;
      for (index_t v = 0; v < padded; v += kLanes) {
        const index_t at = v * n + i * kLanes;
        const VecF score = load<VecF>(s + at);
        const VecF d = load<VecF>(gram_a + at) * scale - leaky(score) * pull;
        store(gram_a + at,
              load<VecF>(share + v) * load<VecF>(a + at) + (score > 0.0f ? d : d * kLeak));
      }
    }
  }

  // gram becomes what the contexts' gradients give source i of source k, the sum over the queries.
  void gram_backward() const {
    for (index_t i = 0; i < n; ++i)
      for (index_t k = 0; k <= i; ++k) {
        VecF sum{};
        for (index_t v = 0; v < padded; v += kLanes)
          sum += load<VecF>(d_square + v) * load<VecF>(a + v * n + i * kLanes) *
                 load<VecF>(a + v * n + k * kLanes);
        gram[i * n + k] = gram[k * n + i] = total(sum);
      }
  }

  void backward(float g) const {
    result();
    for (index_t j = m; j < padded; ++j) share[j] = 0.0f;
    for (index_t i = 0; i < n * kLanes; i += kLanes) store(inner + i, VecF{});
    for (index_t v = 0; v < padded; v += kLanes) query_backward(v, g);
    score_backward();
    const index_t dim = op.dim;
    for (index_t v = 0; v < padded; v += kLanes) {
      const index_t some = m - v < kLanes ? m - v : kLanes;
      const float* ds = gram_a + v * n;
      if (of.d_x)
        product(n, dim, ds, kLanes, 1, of.y + v * dim, dim, of.d_x, dim, some, true);
      if (of.d_y)
        product(some, dim, ds, 1, kLanes, of.x, dim, of.d_y + v * dim, dim, n, true);
    }
    if (of.d_x) {
      gram_backward();
      product(n, dim, gram, n, 1, of.x, dim, of.d_x, dim, n, true);
    }
    if (of.d_y)
      for (index_t j = 0; j < m; ++j) add_row(own[j], of.y + j * dim, dim, of.d_y + j * dim);
  }
};

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
