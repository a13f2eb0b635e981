// A pair with its sources along vector lanes. Contexts and their gradients are formed outright: with
// fewer queries than sources that costs less than the Gram matrix of the sources, and it keeps the
// digits of contexts that cancel.
#pragma once

#include "cross_attention_pairs.h"

namespace sede {
namespace SEDE_ISA {
namespace {

struct SourceLanes {
  const CrossAttentionPairs& op;
  const PairOfSets& of;
  const index_t n, m, padded;
  float *s, *softmax, *a, *products;  // [m][padded]
  std::int32_t *kept, *keys;          // [m][padded], [padded]
  float *norm, *inner;                // [padded]
  float *sim, *share, *size, *context_norm, *kept_sum;  // [m]
  float* context;                     // [m][dim]

  SourceLanes(const CrossAttentionPairs& call, const PairOfSets& sets, Arrays& memory)
      : op(call), of(sets), n(sets.n), m(sets.m), padded(whole_vectors(sets.n)) {
    memory.take(m * padded, s, softmax, products);
    a = softmax;
    kept = nullptr;
    if (op.erase) memory.take(m * padded, a, kept);
    memory.take(padded, keys, norm, inner);
    memory.take(m, sim, share, size, context_norm, kept_sum);
    memory.take(m * op.dim, context);
  }

  // out[j][i] = left_j . x_i, zero in the padding.
  void dots(const float* left, float* out) const {
    index_t i = 0;
    for (; i + 4 <= n; i += 4) dot_column<4>(left, m, of.x + i * op.dim, op.dim, out + i, padded);
    for (; i < n; ++i) dot_column<1>(left, m, of.x + i * op.dim, op.dim, out + i, padded);
    for (index_t j = 0; j < m; ++j)
      for (i = n; i < padded; ++i) out[j * padded + i] = 0.0f;
  }

  void norms() const {
    for (index_t i = 0; i < padded; i += kLanes) {
      VecF sum{};
      for (index_t j = 0; j < m; ++j) {
        const VecF v = leaky(load<VecF>(s + j * padded + i));
        sum += v * v;
      }
      store(norm + i, root(sum));
    }
  }

  void attend(index_t j) const {
    const float* score = s + j * padded;
    float* p = softmax + j * padded;
    VecF peaks = splat<VecF>(kNegInf<float>), sums{};
    for (index_t i = 0; i < padded; i += kLanes) {
      const VecF scale = op.smoothing / (load<VecF>(norm + i) + kNormEps);
      const VecF v = leaky(load<VecF>(score + i)) * scale;
      store(p + i, v);
      peaks = (v > peaks) & lanes_below(i, n) ? v : peaks;
    }
    float peak = kNegInf<float>;
    for (int lane = 0; lane < kLanes; ++lane) peak = peaks[lane] > peak ? peaks[lane] : peak;
    for (index_t i = 0; i < padded; i += kLanes) {
      const VecF e = exp_near(load<VecF>(p + i) - peak);
      const VecF valid = (VecF)((VecI)e & lanes_below(i, n));
      store(p + i, valid);
      sums += valid;
    }
    const float part = 1.0f / total(sums);
    for (index_t i = 0; i < padded; i += kLanes) store(p + i, load<VecF>(p + i) * part);
    if (op.erase) erase(j);
  }

  void erase(index_t j) const {
    const float* p = softmax + j * padded;
    std::int32_t* keep = kept + j * padded;
    float sum = keep_row(op.rule, p, n, padded, keep, keys);
    if (!op.rule.renormalize || sum == 0.0f) sum = 1.0f;
    kept_sum[j] = sum;
    for (index_t i = 0; i < padded; i += kLanes)
      store(a + j * padded + i,
            (VecF)((VecI)load<VecF>(p + i) & load<VecI>(keep + i)) / splat<VecF>(sum));
  }

  bool similarities() const {
    dots(of.y, s);
    norms();
    for (index_t j = 0; j < m; ++j) attend(j);
    product(m, op.dim, a, padded, 1, of.x, op.dim, context, op.dim, n, false);
    row_norms(context, m, op.dim, context_norm);
    row_dots(of.y, context, m, op.dim, sim);
    for (index_t j = 0; j < m; ++j) {
      size[j] = of.query_norm[j] * context_norm[j];
      sim[j] /= size[j] < kCosineEps ? kCosineEps : size[j];
    }
    return true;
  }

  float result() const { return aggregate(op, sim, m, share); }

  // What the cosine gives query j directly, and its context: context becomes its own gradient.
  void cosine_backward(index_t j, float g) const {
    const bool free = size[j] > kCosineEps;
    const float radial = free ? g * sim[j] : 0.0f;
    const float d_dot = g / (free ? size[j] : kCosineEps);
    const float of_context = free ? -radial / (context_norm[j] * context_norm[j]) : 0.0f;
    const float own = free ? -radial / (of.query_norm[j] * of.query_norm[j]) : 0.0f;
    const float* y = of.y + j * op.dim;
    float *c = context + j * op.dim, *out = of.d_y ? of.d_y + j * op.dim : nullptr;
    for (index_t d = 0; d < op.dim; d += kLanes) {
      const VecF query = load<VecF>(y + d), attended = load<VecF>(c + d);
      if (out) store(out + d, load<VecF>(out + d) + (d_dot * attended + own * query));
      store(c + d, d_dot * query + of_context * attended);
    }
  }

  // Turns products (source times the context's gradient) into the gradient of the softmax's argument.
  void attention_backward(index_t j) const {
    float* d = products + j * padded;
    const float *score = s + j * padded, *used = a + j * padded, *p = softmax + j * padded;
    VecF sums{};
    for (index_t i = 0; i < padded; i += kLanes)
      sums += load<VecF>(d + i) * load<VecF>(used + i);
    float across = total(sums);
    if (op.erase) {
      const float mean = op.rule.renormalize ? across : 0.0f;
      sums = VecF{};
      for (index_t i = 0; i < padded; i += kLanes) {
        const VecF v = (load<VecF>(d + i) - mean) / splat<VecF>(kept_sum[j]);
        const VecF passed = (VecF)((VecI)v & load<VecI>(kept + j * padded + i));
        store(d + i, passed);
        sums += passed * load<VecF>(p + i);
      }
      across = total(sums);
    }
    for (index_t i = 0; i < padded; i += kLanes) {
      const VecF v = op.smoothing * load<VecF>(p + i) * (load<VecF>(d + i) - across);
      store(d + i, v);
      store(inner + i, load<VecF>(inner + i) + v * leaky(load<VecF>(score + i)));
    }
  }

  // From the softmax's argument to S: products becomes what attention gives dS. The norm takes away
  // all that goes along with it: of a single query nearly everything, which is told exactly and
  // not by a difference.
  void score_backward() const {
    for (index_t i = 0; i < padded; i += kLanes) {
      const VecF of_source = load<VecF>(norm + i), scale = 1.0f / (of_source + kNormEps);
      const VecF pull = of_source > 0.0f ? load<VecF>(inner + i) * scale * scale / of_source : VecF{};
      for (index_t j = 0; j < m; ++j) {
        const index_t at = j * padded + i;
        const VecF score = load<VecF>(s + at);
        const VecF whole = load<VecF>(products + at) * scale;
        const VecF d = m == 1 ? whole * scale * kNormEps : whole - leaky(score) * pull;
        store(products + at, score > 0.0f ? d : d * kLeak);
      }
    }
  }

  void backward(float g) const {
    result();
    for (index_t j = 0; j < m; ++j) cosine_backward(j, g * share[j]);
    dots(context, products);
    for (index_t i = 0; i < padded; i += kLanes) store(inner + i, VecF{});
    for (index_t j = 0; j < m; ++j) attention_backward(j);
    score_backward();
    const index_t dim = op.dim;
    if (of.d_x) {
      product(n, dim, products, 1, padded, of.y, dim, of.d_x, dim, m, true);
      product(n, dim, a, 1, padded, context, dim, of.d_x, dim, m, true);
    }
    if (of.d_y) product(m, dim, products, padded, 1, of.x, dim, of.d_y, dim, n, true);
  }
};

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
