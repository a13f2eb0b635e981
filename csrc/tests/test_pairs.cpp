// The similarity of chosen pairs against loops in double, its gradients against central differences.
#include <algorithm>

#include "../fragments.h"
#include "check.h"

using namespace sede_test;
using sede::Aggregate;

namespace {

// Three batch rows of two pairs; one side of each call is shared by the pairs of a row.
struct Problem {
  static constexpr index_t batch = 3, pairs = 2, sources = 5, queries = 4, dim = 16;
  bool shared_source;
  Aggregate aggregate;
  bool erase;
  double smoothing = 9;
  std::vector<double> source, query, weight;
  std::vector<index_t> source_lengths, query_lengths;

  index_t source_sets() const { return shared_source ? 1 : pairs; }
  index_t query_sets() const { return shared_source ? pairs : 1; }

  Problem(bool shares, Aggregate how, bool erases)
      : shared_source(shares), aggregate(how), erase(erases) {
    for (float x : random_matrix<float>(batch * source_sets() * sources, dim, 31))
      source.push_back(double(x));
    for (float x : random_matrix<float>(batch * query_sets() * queries, dim, 32))
      query.push_back(double(x));
    for (float x : random_matrix<float>(batch, pairs, 33)) weight.push_back(double(x));
    for (index_t n = 0; n < batch * source_sets(); ++n) source_lengths.push_back(sources - n % 3);
    for (index_t n = 0; n < batch * query_sets(); ++n) query_lengths.push_back(n % (queries + 1));
    query_lengths[0] = queries;
  }

  // Every second source undoes most of the one before it, attention weighs both nearly alike, and
  // beyond the first two sources all are small: no context keeps its digits in a Gram matrix.
  void cancel() {
    smoothing = 0.05;
    for (std::size_t at = 0; at < source.size(); ++at) {
      const std::size_t fragment = at / dim % sources;
      if (fragment % 2)
        source[at] = double(float(-0.8 * source[at - dim]));
      else if (fragment > 0)
        source[at] = double(float(0.01 * source[at]));
    }
  }

  double similarity(index_t row, index_t pair) const {
    const index_t xs = row * source_sets() + (shared_source ? 0 : pair);
    const index_t ys = row * query_sets() + (shared_source ? pair : 0);
    const double* x = source.data() + xs * sources * dim;
    const double* y = query.data() + ys * queries * dim;
    const index_t n = source_lengths[std::size_t(xs)], m = query_lengths[std::size_t(ys)];
    if (n == 0 || m == 0) return 0;
    auto dot = [](const double* a, const double* b) {
      double sum = 0;
      for (index_t d = 0; d < dim; ++d) sum += a[d] * b[d];
      return sum;
    };
    auto leaky = [](double s) { return s > 0 ? s : 0.1 * s; };
    double sum = 0, peak = -INFINITY, total = 0;
    for (index_t j = 0; j < m; ++j) {
      std::vector<double> a, context(std::size_t(dim), 0.0);
      double all = 0;
      for (index_t i = 0; i < n; ++i) {
        double squares = 0;
        for (index_t q = 0; q < m; ++q) {
          const double s = leaky(dot(x + i * dim, y + q * dim));
          squares += s * s;
        }
        a.push_back(std::exp(smoothing * leaky(dot(x + i * dim, y + j * dim)) / (std::sqrt(squares) + 1e-8)));
      }
      if (erase) a[std::size_t(std::min_element(a.begin(), a.end()) - a.begin())] = 0;
      for (double v : a) all += v;
      for (index_t i = 0; i < n; ++i)
        for (index_t d = 0; d < dim; ++d)
          context[std::size_t(d)] += a[std::size_t(i)] / all * x[i * dim + d];
      const double size = std::sqrt(dot(context.data(), context.data()) * dot(y + j * dim, y + j * dim));
      const double cosine = dot(context.data(), y + j * dim) / std::max(size, 1e-8);
      sum += cosine, peak = std::max(peak, cosine), total += std::exp(6 * cosine);
    }
    switch (aggregate) {
      case Aggregate::lse: return std::log(total) / 6;
      case Aggregate::max: return peak;
      case Aggregate::mean: return sum / double(m);
      default: return sum;
    }
  }
  double objective() const {
    double total = 0;
    for (index_t n = 0; n < batch * pairs; ++n)
      total += weight[std::size_t(n)] * similarity(n / pairs, n % pairs);
    return total;
  }
};

void test_pairs(bool shared_source, Aggregate aggregate, bool erase, bool cancels = false) {
  Problem p(shared_source, aggregate, erase);
  if (cancels) p.cancel();
  const std::vector<float> source(p.source.begin(), p.source.end());
  const std::vector<float> query(p.query.begin(), p.query.end());
  const std::vector<float> grad(p.weight.begin(), p.weight.end());
  std::vector<float> out(grad.size()), d_source(source.size()), d_query(query.size());
  sede::CrossAttentionPairs op{};
  op.source = source.data(), op.query = query.data();
  op.batch = Problem::batch, op.pairs = Problem::pairs;
  op.source_sets = p.source_sets(), op.query_sets = p.query_sets();
  op.sources = Problem::sources, op.queries = Problem::queries, op.dim = Problem::dim;
  op.source_lengths = p.source_lengths.data(), op.query_lengths = p.query_lengths.data();
  op.smoothing = float(p.smoothing), op.aggregate = aggregate, op.aggregate_scale = 6;
  // Quantile 0.2 of 3 to 5 sources erases the least attended alone.
  op.erase = erase, op.rule = {sede::Rule::quantile, 0.2, 1, true, true};
  op.out = out.data();
  sede::cross_attention_pairs(op);
  for (std::size_t n = 0; n < out.size(); ++n)
    near(double(out[n]), p.similarity(index_t(n) / 2, index_t(n) % 2), 1e-5, "similarity");
  const std::vector<float> first = out;
  op.contexts = true;
  sede::cross_attention_pairs(op);
  expect(!cancels || out == first, "contexts that cancel are formed");
  op.contexts = false;
  op.grad = grad.data(), op.d_source = d_source.data(), op.d_query = d_query.data();
  sede::cross_attention_pairs_backward(op);
  auto slope = [&](double& x) {
    const double step = 1e-6, before = x;
    x = before + step;
    const double up = p.objective();
    x = before - step;
    const double down = p.objective();
    x = before;
    return (up - down) / (2 * step);
  };
  for (std::size_t n = 0; n < source.size(); n += 3)
    near(double(d_source[n]), slope(p.source[n]), cancels ? 2e-3 : 2e-4, "d source");
  for (std::size_t n = 0; n < query.size(); n += 3)
    near(double(d_query[n]), slope(p.query[n]), cancels ? 2e-3 : 2e-4, "d query");
}

}  // namespace

int main() {
  return on_every_isa([] {
    for (bool shared_source : {true, false})
      for (Aggregate aggregate : {Aggregate::lse, Aggregate::mean, Aggregate::max, Aggregate::sum})
        for (bool erase : {false, true}) {
          test_pairs(shared_source, aggregate, erase);
          if (!erase) test_pairs(shared_source, aggregate, erase, true);
        }
  });
}
