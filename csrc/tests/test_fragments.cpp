// Erasing and the epilogue of the region-word similarity against loops in double; the gradients of
// the latter against central differences.
#include <algorithm>
#include <functional>

#include "../fragments.h"
#include "check.h"

using namespace sede_test;
using sede::Aggregate;
using sede::Rule;

namespace {

// The fragments of one row that stay.
std::vector<bool> kept_by(const sede::EraseRule& rule, const std::vector<double>& a) {
  const std::size_t n = a.size();
  std::vector<double> ordered(a);
  std::sort(ordered.begin(), ordered.end());
  double total = 0, root = 0, power = 0;
  for (double x : a) total += x, root += std::sqrt(x), power += x * std::sqrt(x);
  const double position = n ? rule.threshold * double(n - 1) : 0;
  const std::size_t below = rule.rule == Rule::quantile && n ? std::size_t(position) : 0;
  std::vector<bool> keep(n);
  std::size_t count = 0;
  for (std::size_t i = 0; i < n; ++i) {
    bool high = false;
    if (rule.rule == Rule::mean) high = a[i] > total / double(n);
    if (rule.rule == Rule::prob) high = a[i] > power / root;
    if (rule.rule == Rule::absolute) high = a[i] > rule.threshold;
    if (rule.rule == Rule::relative) high = a[i] >= rule.threshold * ordered.back();
    if (rule.rule == Rule::topk)
      high = std::count_if(a.begin(), a.end(), [&](double x) { return x > a[i]; }) <
             std::ptrdiff_t(rule.threshold);
    if (rule.rule == Rule::quantile) {
      const double next = ordered[std::min(below + 1, n - 1)];
      high = a[i] >= ordered[below] + (position - double(below)) * (next - ordered[below]);
    }
    keep[i] = rule.low ? high : !high;
    count += keep[i];
  }
  for (; count < std::min<std::size_t>(n, std::size_t(rule.keep_min)); ++count) {
    std::size_t best = n;
    for (std::size_t i = 0; i < n; ++i)
      if (!keep[i] && (best == n || (rule.low ? a[i] > a[best] : a[i] < a[best]))) best = i;
    keep[best] = true;
  }
  return keep;
}

void test_erase(const sede::EraseRule& rule, index_t rows, index_t length) {
  std::vector<float> a = random_matrix<float>(rows, length, 11), out(a.size()), grad_in(a.size());
  for (float& x : a) x = std::fabs(x) + 1e-3f;
  const std::vector<float> grad = random_matrix<float>(rows, length, 12);
  std::vector<unsigned char> mask(a.size());
  std::vector<index_t> lengths;
  for (index_t r = 0; r < rows; ++r) lengths.push_back(r % (length + 1));
  sede::erase({a.data(), out.data(), mask.data(), lengths.data(), rows, length, sede::DType::f32, rule});
  sede::erase_backward({grad.data(), a.data(), mask.data(), grad_in.data(), rows, length,
                        sede::DType::f32, rule.renormalize});
  for (index_t r = 0; r < rows; ++r) {
    const auto first = a.begin() + r * length;
    const auto keep = kept_by(rule, {first, first + lengths[std::size_t(r)]});
    double total = 0, across = 0;
    for (std::size_t i = 0; i < keep.size(); ++i) total += keep[i] ? double(first[index_t(i)]) : 0;
    if (!rule.renormalize || total == 0) total = 1;
    for (std::size_t i = 0; i < keep.size(); ++i)
      if (keep[i] && rule.renormalize)
        across += double(first[index_t(i)]) * double(grad[std::size_t(r * length) + i]) / total;
    for (index_t i = 0; i < length; ++i) {
      const std::size_t at = std::size_t(r * length + i);
      const bool stays = i < index_t(keep.size()) && keep[std::size_t(i)];
      expect(mask[at] == stays, "mask");
      near(double(out[at]), stays ? double(a[at]) / total : 0, 1e-6, "erased");
      near(double(grad_in[at]), stays ? (double(grad[at]) - across) / total : 0, 1e-5, "erase grad");
    }
  }
}

// One block of sets, the sides in lanes and in rows, as doubles that the floats hold exactly.
struct Block {
  static constexpr index_t fragments = 4, lanes = 16, longest = 5, dim = 6;
  const std::vector<index_t> starts{0, 3, 3, 8};
  std::vector<index_t> lane_lengths = std::vector<index_t>(std::size_t(lanes), 0);
  bool lane_source;
  Aggregate aggregate;
  bool erase;
  sede::EraseRule rule{Rule::topk, 2, 1, true, true};
  std::vector<double> s, gram, norm, weight, source_norm, source_mass;

  index_t sets() const { return index_t(starts.size()) - 1; }
  std::size_t s_at(index_t row, index_t fragment, index_t lane) const {
    return std::size_t((row * fragments + fragment) * lanes + lane);
  }
  std::size_t gram_at(index_t set, index_t lane, index_t i, index_t k) const {
    return std::size_t(lane_source ? (i * fragments + k) * lanes + lane
                                   : (set * longest + i) * longest + k);
  }
  std::size_t norm_at(index_t set, index_t lane, index_t j) const {
    return std::size_t(lane_source ? starts[std::size_t(set)] + j : j * lanes + lane);
  }

  Block(bool source, Aggregate how, bool erases) : lane_source(source), aggregate(how), erase(erases) {
    const index_t rows = starts.back();
    lane_lengths[0] = 4, lane_lengths[1] = 2, lane_lengths[5] = 3;
    const auto of_rows = random_matrix<float>(rows, dim, 21);
    auto of_lanes = random_matrix<float>(fragments * lanes, dim, 22);
    for (index_t f = 0; f < fragments; ++f)
      for (index_t v = 0; v < lanes; ++v)
        for (index_t d = 0; d < dim && f >= lane_lengths[std::size_t(v)]; ++d)
          of_lanes[std::size_t((f * lanes + v) * dim + d)] = 0;
    auto dot = [](const float* a, const float* b) {
      double sum = 0;
      for (index_t d = 0; d < dim; ++d) sum += double(a[d]) * double(b[d]);
      return double(float(sum));
    };
    auto row = [&](index_t r) { return of_rows.data() + r * dim; };
    auto lane = [&](index_t f, index_t v) { return of_lanes.data() + (f * lanes + v) * dim; };
    s.resize(std::size_t(rows * fragments * lanes));
    for (index_t r = 0; r < rows; ++r)
      for (index_t f = 0; f < fragments; ++f)
        for (index_t v = 0; v < lanes; ++v) s[s_at(r, f, v)] = dot(row(r), lane(f, v));
    gram.resize(std::size_t(lane_source ? fragments * fragments * lanes : sets() * longest * longest));
    norm.resize(std::size_t(lane_source ? rows : fragments * lanes));
    for (index_t n = 0; n < sets(); ++n) {
      const index_t first = starts[std::size_t(n)], length = starts[std::size_t(n) + 1] - first;
      for (index_t v = 0; v < lanes; ++v) {
        const index_t sources = lane_source ? fragments : length;
        for (index_t i = 0; i < sources; ++i)
          for (index_t k = 0; k < sources; ++k)
            gram[gram_at(n, v, i, k)] = lane_source ? dot(lane(i, v), lane(k, v))
                                                    : dot(row(first + i), row(first + k));
        for (index_t j = 0; j < (lane_source ? length : fragments); ++j) {
          const float* q = lane_source ? row(first + j) : lane(j, v);
          norm[norm_at(n, v, j)] = double(float(std::sqrt(dot(q, q))));
        }
      }
    }
    for (float x : random_matrix<float>(sets(), lanes, 23)) weight.push_back(double(x));
    const index_t sources = lane_source ? fragments : longest, of_a_set = lane_source ? lanes : 1;
    for (index_t n = 0; n < (lane_source ? 1 : sets()); ++n)
      for (index_t i = 0; i < sources; ++i)
        for (index_t v = 0; v < of_a_set; ++v) {
          double sum = 0;
          for (index_t k = 0; k < sources; ++k) sum += std::fabs(gram[gram_at(n, v, i, k)]);
          source_norm.push_back(std::sqrt(gram[gram_at(n, v, i, i)]));
          source_mass.push_back(sum);
        }
  }

  double similarity(index_t set, index_t lane) const {
    const index_t first = starts[std::size_t(set)], length = starts[std::size_t(set) + 1] - first;
    const index_t own = lane_lengths[std::size_t(lane)];
    const index_t n = lane_source ? own : length, m = lane_source ? length : own;
    if (n == 0 || m == 0) return 0;
    auto at = [&](index_t i, index_t j) {
      return s[lane_source ? s_at(first + j, i, lane) : s_at(first + i, j, lane)];
    };
    auto leaky = [](double x) { return x > 0 ? x : 0.1 * x; };
    double sum = 0, peak = -INFINITY, total = 0;
    for (index_t j = 0; j < m; ++j) {
      std::vector<double> a(std::size_t(n), 0.0);
      double all = 0, kept = 0, dots = 0, square = 0;
      for (index_t i = 0; i < n; ++i) {
        double squares = 0;
        for (index_t q = 0; q < m; ++q) squares += leaky(at(i, q)) * leaky(at(i, q));
        a[std::size_t(i)] = std::exp(9 * leaky(at(i, j)) / (std::sqrt(squares) + 1e-8));
        all += a[std::size_t(i)];
      }
      for (double& x : a) x /= all;
      const auto keep = erase ? kept_by(rule, a) : std::vector<bool>(a.size(), true);
      for (std::size_t i = 0; i < a.size(); ++i) a[i] = keep[i] ? a[i] : 0, kept += a[i];
      for (double& x : a) x /= kept;
      for (index_t i = 0; i < n; ++i) {
        dots += a[std::size_t(i)] * at(i, j);
        for (index_t k = 0; k < n; ++k)
          square += a[std::size_t(i)] * a[std::size_t(k)] * gram[gram_at(set, lane, i, k)];
      }
      const double cosine = dots / std::max(norm[norm_at(set, lane, j)] * std::sqrt(square), 1e-8);
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
    for (index_t n = 0; n < sets(); ++n)
      for (index_t v = 0; v < lanes; ++v)
        total += weight[std::size_t(n * lanes + v)] * similarity(n, v);
    return total;
  }
};

void test_similarity(bool lane_source, Aggregate aggregate, bool erase) {
  Block b(lane_source, aggregate, erase);
  const index_t plane = Block::fragments * Block::lanes, blocks = 2;
  std::vector<float> s(b.s.begin(), b.s.end()), gram(b.gram.begin(), b.gram.end());
  const std::vector<float> norm(b.norm.begin(), b.norm.end()), grad(b.weight.begin(), b.weight.end());
  const std::vector<float> source_norm(b.source_norm.begin(), b.source_norm.end());
  const std::vector<float> source_mass(b.source_mass.begin(), b.source_mass.end());
  std::vector<float> out(grad.size());
  std::vector<std::int32_t> lost(grad.size(), -1);
  std::vector<float> d_gram(gram.size() * (lane_source ? blocks : 1), 0.0f);
  std::vector<float> d_norm(norm.size() * (lane_source ? 1 : blocks), 0.0f);
  sede::CrossAttention op{};
  op.s = s.data(), op.sets = b.sets(), op.fragments = Block::fragments, op.lanes = Block::lanes;
  op.starts = b.starts.data(), op.lane_lengths = b.lane_lengths.data();
  op.lane_source = lane_source, op.gram = gram.data(), op.row_gram = Block::longest;
  op.source_norm = source_norm.data(), op.source_mass = source_mass.data();
  op.query_norm = norm.data(), op.lost = lost.data(), op.smoothing = 9;
  op.aggregate = aggregate, op.aggregate_scale = 6, op.erase = erase, op.rule = b.rule;
  op.out = out.data();
  sede::cross_attention(op);
  for (index_t n = 0; n < b.sets(); ++n)
    for (index_t v = 0; v < Block::lanes; ++v)
      near(double(out[std::size_t(n * Block::lanes + v)]), b.similarity(n, v), 1e-5, "similarity");
  op.grad = grad.data(), op.ds = s.data(), op.d_gram = d_gram.data(), op.d_norm = d_norm.data();
  sede::cross_attention_backward(op, blocks);
  for (std::int32_t mark : lost) expect(mark == 0, "nothing cancels");

  auto slope = [&](double& x) {
    const double step = 1e-6, before = x;
    x = before + step;
    const double up = b.objective();
    x = before - step;
    const double down = b.objective();
    x = before;
    return (up - down) / (2 * step);
  };
  for (index_t r = 0; r < b.starts.back(); ++r)
    for (index_t f = 0; f < Block::fragments; ++f)
      for (index_t v : {0, 1, 2, 5})
        near(double(s[b.s_at(r, f, v)]), slope(b.s[b.s_at(r, f, v)]), 2e-4, "dS");
  for (std::size_t n = 0; n < b.norm.size(); n += lane_source ? 1 : 3) {
    double got = double(d_norm[n]);
    if (!lane_source) got += double(d_norm[n + std::size_t(plane)]);
    if (b.norm[n] > 0) near(got, slope(b.norm[n]) / b.norm[n], 1e-3, "d norm");
  }
  // The lower triangle holds the gradient of a symmetric entry, the diagonal half of it.
  for (index_t n = 0; n < (lane_source ? 1 : b.sets()); ++n)
    for (index_t v : {0, 1, 5})
      for (index_t i = 0; i < (lane_source ? Block::fragments : Block::longest); ++i)
        for (index_t k = 0; k <= i; ++k) {
          const std::size_t at = b.gram_at(n, v, i, k);
          double got = double(d_gram[at]);
          if (lane_source) got += double(d_gram[at + gram.size()]);
          near(i == k ? 2 * got : got, slope(b.gram[at]), 2e-4, "d gram");
        }
}

// A set of two sources, of which both queries attend to either alike: v and nearly -v, or two that are
// orthogonal. The second query is beyond the length of its set in lane 1; lane 2 holds no set.
void test_cancelling(bool opposite, bool lane_source) {
  constexpr index_t lanes = 16;
  const float across = opposite ? -0.99f : 0.0f;
  const std::vector<index_t> starts{0, 2};
  std::vector<index_t> lengths(lanes, 0);
  lengths[0] = 2, lengths[1] = lane_source ? 2 : 1;
  std::vector<float> s(4 * lanes, 0.0f), ds(4 * lanes, 1.0f), out(lanes), grad(lanes, 1.0f);
  std::vector<float> gram, norm(2 * lanes, 1.0f), mass(2 * lanes, 1 - across);
  std::vector<float> d_gram(4 * lanes, 0.0f), d_norm(2 * lanes, 0.0f);
  std::vector<std::int32_t> lost(lanes, -1);
  for (int entry = 0; entry < 4; ++entry)
    for (index_t v = 0; v < (lane_source ? lanes : 1); ++v)
      gram.push_back(entry == 0 || entry == 3 ? 1.0f : across);
  sede::CrossAttention op{};
  op.s = s.data(), op.sets = 1, op.fragments = 2, op.lanes = lanes, op.starts = starts.data();
  op.lane_lengths = lengths.data(), op.lane_source = lane_source, op.gram = gram.data();
  op.row_gram = 2, op.source_norm = norm.data(), op.source_mass = mass.data();
  op.query_norm = norm.data(), op.lost = lost.data(), op.out = out.data(), op.grad = grad.data();
  op.smoothing = 1, op.aggregate = Aggregate::mean, op.aggregate_scale = 1;
  op.ds = ds.data(), op.d_gram = d_gram.data(), op.d_norm = d_norm.data();
  for (bool backward : {false, true}) {
    std::fill(lost.begin(), lost.end(), -1);
    if (backward)
      sede::cross_attention_backward(op, 1);
    else
      sede::cross_attention(op);
    for (index_t v = 0; v < lanes; ++v)
      expect((lost[std::size_t(v)] != 0) == (opposite && v < 2), "marks of what cancels");
  }
  for (index_t n = 0; opposite && n < 4 * lanes; ++n)
    expect(ds[std::size_t(n)] == 0 && d_gram[std::size_t(n)] == 0, "no gradient of what cancels");
}

}  // namespace

int main() {
  return on_every_isa([] {
    for (const Rule rule :
         {Rule::mean, Rule::prob, Rule::absolute, Rule::relative, Rule::topk, Rule::quantile})
      for (bool low : {true, false})
        for (bool renormalize : {true, false}) {
          const double threshold = rule == Rule::topk ? 3 : rule == Rule::quantile ? 0.37 : 0.3;
          test_erase({rule, threshold, 2, low, renormalize}, 9, 7);
          test_erase({rule, threshold, 1, low, renormalize}, 80, 36);
        }
    for (bool lane_source : {true, false})
      for (Aggregate aggregate : {Aggregate::lse, Aggregate::mean, Aggregate::max, Aggregate::sum})
        for (bool erase : {false, true}) test_similarity(lane_source, aggregate, erase);
    for (bool lane_source : {true, false})
      for (bool opposite : {true, false}) test_cancelling(opposite, lane_source);
  });
}
