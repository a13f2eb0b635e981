// The loss of given scores and its gradient against a naive loss in double and its central
// differences: both layouts, every treatment of the query's id, rows beyond a block, columns beyond
// a chunk.
#include "../score_info_nce.h"
#include "check.h"

using namespace sede_test;
using sede::FalseNegatives;
using sede::InfoNceRule;
using sede::Reduction;

namespace {

using Values = std::vector<double>;

struct Problem {
  index_t rows, columns;
  InfoNceRule rule;
  bool own;  // the right scores are on the diagonal
  Values scores, positive;
  std::vector<unsigned char> valid;
  std::vector<index_t> ids, key_ids;

  Problem(index_t b, index_t n, const InfoNceRule& of, bool diagonal)
      : rows(b), columns(n), rule(of), own(diagonal), scores(random_matrix<double>(b, n, 1)),
        positive(random_matrix<double>(b, 1, 2)), ids(random_ids(b, 4, 3)),
        key_ids(random_ids(n, 4, 4)) {
    for (double& s : scores) s *= std::sqrt(double(n));
    for (index_t k : random_ids(b * n, 5, 5)) valid.push_back(k != 0);
  }
  double& score(index_t i, index_t j) { return scores[std::size_t(i * columns + j)]; }
};

// Scores in weights that are detached come from `fixed`.
double naive_row(Problem& p, Problem& fixed, index_t i) {
  const InfoNceRule& rule = p.rule;
  const double it = 1 / rule.temperature;
  const double right = p.own ? p.score(i, i) : p.positive[std::size_t(i)];
  double number = 0, weights = 0, negatives = 0, positives = std::exp(it * right), mean = right;
  double all = 1;
  for (index_t j = 0; j < p.columns; ++j) {
    const index_t key = p.key_ids[std::size_t(j)];
    if (!p.valid[std::size_t(i * p.columns + j)] || key == -1 || (p.own && i == j)) continue;
    const double s = p.score(i, j), constant = rule.detach_weights ? fixed.score(i, j) : s;
    const bool same = key == p.ids[std::size_t(i)];
    if (same && rule.false_negatives == FalseNegatives::positive)
      positives += std::exp(it * s), mean += s, all += 1;
    if (same && rule.false_negatives != FalseNegatives::keep) continue;
    const double w = rule.weighted ? std::exp(rule.hardness * constant) : 1;
    number += 1, weights += w, negatives += w * std::exp(it * s);
  }
  if (number > 0 && rule.weighted && rule.normalize_weights) negatives *= number / weights;
  return std::log(positives + negatives) - it * mean / all;
}

template <class T>
void check(const Problem& original, bool transposed, double tolerance) {
  Problem p = original;
  const index_t b = p.rows, n = p.columns;
  std::vector<T> scores(p.scores.size()), gradient(p.scores.size());
  std::vector<T> right(p.positive.begin(), p.positive.end()), by_positive(right);
  auto at = [&](index_t i, index_t j) { return std::size_t(transposed ? j * b + i : i * n + j); };
  for (index_t i = 0; i < b; ++i)
    for (index_t j = 0; j < n; ++j) scores[at(i, j)] = T(p.score(i, j));
  auto matrix_of = [&](const std::vector<T>& values) {
    sede::Matrix m = matrix(values, b, n);
    m.row_stride = transposed ? 1 : n, m.col_stride = transposed ? b : 1;
    return m;
  };
  std::vector<T> table(std::size_t(sede::kScoreTable * b)), loss(static_cast<std::size_t>(b));
  std::vector<index_t> negatives(static_cast<std::size_t>(b)), column(negatives);
  const sede::GivenScores given{matrix_of(scores), p.own ? sede::Matrix{} : matrix(right, b, 1),
                                p.valid.data(), n, 1, p.ids.data(), p.key_ids.data(), table.data()};
  p.rule.reduction = Reduction::none;
  p.rule.moments = true;
  sede::score_info_nce(p.rule, given, loss.data(), negatives.data(), column.data());
  const T one = 1;
  T tau = 0, beta = 0;
  const sede::Matrix to_positive = p.own ? sede::Matrix{} : matrix(by_positive, b, 1);
  sede::score_info_nce_backward(p.rule, given, &one, 0,
                                {matrix_of(gradient), to_positive, &tau, &beta});
  const double h = 1e-5;
  for (index_t i = 0; i < b; ++i) {
    near(loss[std::size_t(i)], naive_row(p, p, i), tolerance, "loss");
    for (index_t j = 0; j < n; j += n > 40 ? 7 : 1) {
      Problem up = p, down = p;
      up.score(i, j) += h, down.score(i, j) -= h;
      const double want = (naive_row(up, p, i) - naive_row(down, p, i)) / (2 * h);
      near(gradient[at(i, j)], want, 1e-5 + tolerance, "gradient of a score");
    }
  }
  auto total = [&](double temperature, double hardness) {
    Problem q = p;
    q.rule.temperature = temperature, q.rule.hardness = hardness;
    double sum = 0;
    for (index_t i = 0; i < b; ++i) sum += naive_row(q, p, i);
    return sum;
  };
  const double t = p.rule.temperature, w = p.rule.hardness;
  near(tau, (total(t + h, w) - total(t - h, w)) / (2 * h), 1e-4 + tolerance, "temperature");
  near(beta, (total(t, w + h) - total(t, w - h)) / (2 * h), 1e-4 + tolerance, "hardness");
}

void every_rule() {
  for (bool detach : {true, false})
    for (bool normalize : {true, false})
      for (auto same : {FalseNegatives::mask, FalseNegatives::positive, FalseNegatives::keep}) {
        InfoNceRule rule{};
        rule.temperature = 0.5, rule.hardness = 2, rule.weighted = true;
        rule.normalize_weights = normalize, rule.detach_weights = detach;
        rule.false_negatives = same;
        for (bool own : {true, false})
          for (bool transposed : {true, false}) {
            check<double>({5, 9, rule, own}, transposed, 1e-10);
            check<float>({5, 9, rule, own}, transposed, 1e-4);
          }
        check<float>({3, 300, rule, true}, false, 1e-4);
      }
}

// More rows than a block on any number of threads: the rows of one are those of all.
void many_rows() {
  InfoNceRule rule{};
  rule.temperature = 0.2, rule.hardness = 3, rule.weighted = rule.normalize_weights = true;
  rule.reduction = Reduction::none;
  const index_t b = 2100, n = 37;
  const std::vector<float> scores = random_matrix<float>(b, n, 7);
  const std::vector<float> right = random_matrix<float>(b, 1, 8);
  auto run = [&](index_t begin, index_t rows, std::vector<float>& loss) {
    std::vector<float> table(std::size_t(sede::kScoreTable * rows));
    std::vector<index_t> negatives(static_cast<std::size_t>(rows)), column(negatives);
    const sede::GivenScores given{
        {scores.data() + begin * n, rows, n, n, 1, sede::DType::f32},
        {right.data() + begin, rows, 1, 1, 1, sede::DType::f32},
        nullptr, 0, 0, nullptr, nullptr, table.data()};
    sede::score_info_nce(rule, given, loss.data(), negatives.data(), column.data());
  };
  std::vector<float> all(static_cast<std::size_t>(b)), one(1);
  run(0, b, all);
  for (index_t i = 0; i < b; i += 13) {
    run(i, 1, one);
    expect(one[0] == all[std::size_t(i)], "a row alone");
  }
}

}  // namespace

int main() {
  return on_every_isa([] {
    every_rule();
    many_rows();
  });
}
