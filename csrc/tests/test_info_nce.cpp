// The weighted InfoNCE and its gradients against a naive loss in double and its central differences;
// the sums of a bank in two parts against the bank in one.
#include <algorithm>

#include "../info_nce.h"
#include "check.h"

using namespace sede_test;
using sede::FalseNegatives;
using sede::InfoNceRule;
using sede::Reduction;

namespace {

using Values = std::vector<double>;

struct Point {
  Values query, key;  // [B][D]
  double temperature, hardness;
};

struct Problem {
  index_t rows, size, dim;
  Values bank;
  std::vector<index_t> ids, bank_ids;
  InfoNceRule rule;
  Point at;
  Values limits;  // [B], or none

  Problem(index_t b, index_t k, index_t d, const InfoNceRule& of)
      : rows(b), size(k), dim(d), bank(random_matrix<double>(k, d, 2)), ids(random_ids(b, 4, 3)),
        bank_ids(random_ids(k, 4, 4)), rule(of),
        at{random_matrix<double>(b, d, 5), random_matrix<double>(b, d, 6), of.temperature,
           of.hardness} {}
};

double dot(const Values& a, index_t i, const Values& b, index_t j, index_t dim) {
  double s = 0;
  for (index_t d = 0; d < dim; ++d) s += a[std::size_t(i * dim + d)] * b[std::size_t(j * dim + d)];
  return s;
}

// Row losses with every similarity written out; weights and limits come from `fixed` where they are
// detached.
Values naive_rows(const Problem& p, const Point& x, const Point& fixed) {
  const InfoNceRule& rule = p.rule;
  Values losses;
  for (index_t i = 0; i < p.rows; ++i) {
    const double it = 1 / x.temperature, own = dot(x.query, i, x.key, i, p.dim);
    const double limit = p.limits.empty() ? dot(fixed.query, i, fixed.key, i, p.dim) + rule.margin
                                          : p.limits[std::size_t(i)];
    const bool limited = rule.has_margin || !p.limits.empty();
    Values s, s_fixed, extra;
    auto see = [&](const Values& from, const Values& from_fixed, index_t j, bool filled, bool same) {
      const double value = dot(x.query, i, from, j, p.dim);
      const double constant = dot(fixed.query, i, from_fixed, j, p.dim);
      if (!filled) return;
      if (same && rule.false_negatives == FalseNegatives::positive) extra.push_back(value);
      if (same && rule.false_negatives != FalseNegatives::keep) return;
      if (limited && constant > limit) return;
      s.push_back(value), s_fixed.push_back(constant);
    };
    const index_t id = p.ids[std::size_t(i)];
    for (index_t j = 0; j < p.size; ++j) {
      const index_t other = p.bank_ids[std::size_t(j)];
      see(p.bank, p.bank, j, other != -1, other == id);
    }
    for (index_t j = 0; j < p.rows && rule.in_batch; ++j)
      if (j != i) see(x.key, fixed.key, j, true, id != -1 && p.ids[std::size_t(j)] == id);
    const double n = double(s.size());
    double weights = 0, negatives = 0, positives = std::exp(it * own), mean = own;
    auto weight = [&](std::size_t j) {
      return rule.weighted ? std::exp(x.hardness * (rule.detach_weights ? s_fixed[j] : s[j])) : 1;
    };
    for (std::size_t j = 0; j < s.size(); ++j) weights += weight(j);
    for (std::size_t j = 0; j < s.size(); ++j)
      negatives += weight(j) * std::exp(it * s[j]) *
                   (rule.weighted && rule.normalize_weights ? n / weights : 1);
    if (rule.tau_plus > 0 && n > 0)
      negatives = std::max((negatives - rule.tau_plus * n * std::exp(it * own)) / (1 - rule.tau_plus),
                           n * std::exp(-it));
    for (double value : extra) positives += std::exp(it * value), mean += value;
    mean /= double(extra.size()) + 1;
    losses.push_back(std::log(positives + negatives) - it * mean);
  }
  return losses;
}

// The loss with the weights of the focus taken at `fixed`.
double naive(const Problem& p, const Point& x, const Point& fixed) {
  const Values losses = naive_rows(p, x, fixed), base = naive_rows(p, fixed, fixed);
  double loss = 0, total = 0;
  for (std::size_t i = 0; i < losses.size(); ++i) {
    const double w = std::pow(1 - std::exp(-base[i]), p.rule.positive_focus);
    loss += w * losses[i], total += w;
  }
  return p.rule.reduction == Reduction::mean ? loss / total : loss;
}

template <class T>
std::vector<T> as(const Values& from) { return std::vector<T>(from.begin(), from.end()); }

template <class T>
void test_against_naive(const Problem& p, double tolerance, const std::string& what) {
  const std::vector<T> query = as<T>(p.at.query), key = as<T>(p.at.key), bank = as<T>(p.bank);
  std::vector<T> table(std::size_t(sede::kTable * p.rows)), unit(query.size()), grad{T(1.5)};
  std::vector<T> query_grad(query.size()), key_grad(query.size()), limit = as<T>(p.limits);
  std::vector<index_t> negatives(static_cast<std::size_t>(p.rows));
  sede::InfoNceSide side{};
  side.query = matrix(query, p.rows, p.dim);
  side.positive = matrix(key, p.rows, p.dim);
  side.bank = matrix(bank, p.size, p.dim);
  side.ids = p.ids.data();
  side.limit = limit.empty() ? nullptr : limit.data();
  side.bank_ids = p.bank_ids.data();
  side.table = table.data();
  side.query_grad = unit.data();
  side.negatives = negatives.data();
  InfoNceRule rule = p.rule;
  rule.moments = true;
  rule.share = 1;
  T loss = 0, temperature = 0, hardness = 0;
  sede::info_nce(rule, {side}, &loss);
  near(double(loss), naive(p, p.at, p.at), tolerance, what + " loss");
  sede::info_nce_backward(rule, {side}, grad.data(), 0, {{query_grad.data(), key_grad.data()}},
                          &temperature, &hardness);
  auto slope = [&](auto change) {
    Point up = p.at, down = p.at;
    const double step = 1e-5;
    change(up) += step, change(down) -= step;
    return 1.5 * (naive(p, up, p.at) - naive(p, down, p.at)) / (2 * step);
  };
  for (std::size_t n = 0; n < query.size(); n += 3) {
    near(double(query_grad[n]), slope([n](Point& x) -> double& { return x.query[n]; }),
         50 * tolerance, what + " query gradient");
    near(double(key_grad[n]), slope([n](Point& x) -> double& { return x.key[n]; }), 50 * tolerance,
         what + " positive gradient");
  }
  near(double(temperature), slope([](Point& x) -> double& { return x.temperature; }),
       100 * tolerance, what + " temperature gradient");
  if (rule.weighted)
    near(double(hardness), slope([](Point& x) -> double& { return x.hardness; }), 50 * tolerance,
         what + " hardness gradient");
}

InfoNceRule plain() {
  InfoNceRule rule{};
  rule.temperature = 0.3, rule.hardness = 2, rule.weighted = true;
  rule.normalize_weights = true, rule.detach_weights = true;
  rule.reduction = Reduction::mean;
  return rule;
}

void test_rules() {
  std::vector<std::pair<std::string, InfoNceRule>> rules{{"plain", plain()}};
  auto add = [&](const std::string& name, auto change) {
    InfoNceRule rule = plain();
    change(rule);
    rules.emplace_back(name, rule);
    rule.in_batch = true;
    rules.emplace_back(name + " in batch", rule);
  };
  add("no weights", [](InfoNceRule& r) { r.weighted = false, r.hardness = 0; });
  add("attached", [](InfoNceRule& r) { r.detach_weights = false; });
  add("unnormalized", [](InfoNceRule& r) { r.normalize_weights = false; });
  add("unnormalized attached", [](InfoNceRule& r) {
    r.normalize_weights = false, r.detach_weights = false;
  });
  add("debiased", [](InfoNceRule& r) { r.tau_plus = 0.1; });
  add("margin", [](InfoNceRule& r) { r.has_margin = true, r.margin = 0.2; });
  add("positives", [](InfoNceRule& r) { r.false_negatives = FalseNegatives::positive; });
  add("keep", [](InfoNceRule& r) { r.false_negatives = FalseNegatives::keep; });
  add("focus", [](InfoNceRule& r) { r.positive_focus = 2; });
  add("sum", [](InfoNceRule& r) { r.reduction = Reduction::sum, r.positive_focus = 1; });
  for (const auto& [name, rule] : rules) {
    Problem p(7, 21, 6, rule);
    test_against_naive<double>(p, 1e-8, name + " f64");
    test_against_naive<float>(p, 2e-5, name + " f32");
    if (rule.has_margin) continue;
    p.limits = {0.5, -0.5, 0.25, 1e9, -1e9, 0, 1};
    test_against_naive<double>(p, 1e-8, name + " limited f64");
    test_against_naive<float>(p, 2e-5, name + " limited f32");
  }
}

// A bank cut in two shards, whose sums `finish` puts together.
void test_shards() {
  const Problem p(5, 30, 6, plain());
  InfoNceRule rule = p.rule;
  rule.share = 1, rule.hardest = true;
  std::vector<double> whole(std::size_t(sede::kTable * p.rows)), parts = whole;
  std::vector<double> whole_grad(p.at.query.size()), grad = whole_grad;
  std::vector<index_t> negatives(5), index(5), index_of_parts(5);
  sede::InfoNceSide side{};
  side.query = matrix(p.at.query, p.rows, p.dim);
  side.positive = matrix(p.at.key, p.rows, p.dim);
  side.bank = matrix(p.bank, p.size, p.dim);
  side.table = whole.data(), side.query_grad = whole_grad.data();
  side.negatives = negatives.data(), side.hardest_index = index.data();
  double loss = 0, loss_of_parts = 0;
  sede::info_nce(rule, {side}, &loss);

  const double scales[] = {1 / rule.temperature + rule.hardness, rule.hardness};
  std::vector<double> lse[2], acc[2], top[2];
  std::vector<index_t> count[2], best[2];
  std::vector<sede::InfoNceSums> sums;
  for (int n = 0; n < 2; ++n) {
    const index_t first = n ? 11 : 0, last = n ? 30 : 11;
    lse[n].resize(10), acc[n].resize(30), top[n].resize(5), count[n].resize(5), best[n].resize(5);
    sede::BankLse op{};
    op.query = side.query;
    op.bank = side.bank;
    op.bank.data = p.bank.data() + first * p.dim;
    op.bank.rows = last - first;
    op.scales = scales;
    op.exponents = 2, op.accumulators = 1, op.hardest = true, op.select = sede::Select::mask;
    sede::bank_lse(op, {lse[n].data(), nullptr, acc[n].data(), count[n].data(), top[n].data(),
                        best[n].data()});
    for (index_t& j : best[n]) j += first;
    sums.push_back({lse[n].data(), nullptr, acc[n].data(), count[n].data(), top[n].data(),
                    best[n].data(), true});
  }
  std::copy_n(whole.data() + sede::kPositive * p.rows, p.rows,
              parts.data() + sede::kPositive * p.rows);
  side.table = parts.data(), side.query_grad = grad.data();
  side.hardest_index = index_of_parts.data();
  sede::info_nce_finish(rule, side, sums, {}, &loss_of_parts);
  near(loss_of_parts, loss, 1e-13, "loss of shards");
  for (std::size_t n = 0; n < grad.size(); ++n)
    near(grad[n], whole_grad[n], 1e-12, "gradient of shards");
  expect(index == index_of_parts, "hardest row of shards");
}

}  // namespace

int main() {
  return on_every_isa([] {
    test_rules();
    test_shards();
  });
}
