// Driver of the weighted InfoNCE of given scores: blocks of rows over the threads, and from a row's
// sums to its loss and derivatives, in double. docs/method.md has the formulas.
#include "score_info_nce.h"

#include <algorithm>
#include <cmath>

#include "dispatch.h"
#include "info_nce_row.h"
#include "parallel.h"
#include "plan.h"

namespace sede {
namespace {

constexpr index_t kTaskElements = 1 << 14;  // less is not worth a thread
constexpr index_t kMostRows = 16;           // of a block: rows that share cache lines of columns

// body(begin, end, scratch) over blocks of rows, whose cut depends on the shape alone.
template <class F>
void over_rows(const Matrix& scores, const F& body) {
  const index_t rows = scores.rows;
  const index_t block = std::min(std::max<index_t>(rows / 64, 1), kMostRows);
  const index_t blocks = (rows + block - 1) / block;
  const index_t together =
      std::max<index_t>(kTaskElements / std::max<index_t>(block * scores.cols, 1), 1);
  const index_t tasks = (blocks + together - 1) / together;
  const index_t bytes = kernels().score_info_nce->scratch(block);
  auto run = [&](index_t task, char* scratch) {
    const index_t last = std::min(blocks, (task + 1) * together);
    for (index_t n = task * together; n < last; ++n)
      body(n * block, std::min(rows, (n + 1) * block), scratch);
  };
  if (tasks <= 1) {
    Buffer scratch(bytes);
    for (index_t task = 0; task < tasks; ++task) run(task, scratch.get());
    return;
  }
  TaskCounter counter(tasks);
  run_workers(tasks, [&] {
    index_t task;
    if (!counter.take(task)) return;
    Buffer scratch(bytes);
    do run(task, scratch.get());
    while (counter.take(task));
  });
}

ScoreCall call_of(const InfoNceRule& rule, const GivenScores& given) {
  const double it = 1 / rule.temperature, beta = rule.weighted ? rule.hardness : 0;
  const bool same = given.ids && given.key_ids;
  return {given.scores, given.valid, given.valid_row, given.valid_col, given.ids, given.key_ids,
          !given.positive.data, rule.false_negatives == FalseNegatives::keep,
          same && rule.extra_positives(), {it + beta, beta}, rule.exponents(), it, rule.moments};
}

// What positives besides the query's own add to a row. Logits and scores are relative to its base.
struct Further {
  double own = 1;              // the share of the query's own in the sum over its positives
  double log_positives;        // log of that sum
  double attracted, mean;      // the mean score of the positives, by their weights and without
  double share = 1;            // of one positive in the mean without weights
};

Further further_of(const ScoreSums& sums, double it, double gap, double base) {
  Further out;
  out.log_positives = it * gap;
  out.attracted = out.mean = gap;
  if (sums.count == 0) return out;
  const double ahead = sums.most - base, number = double(sums.count);
  const double total = it * ahead + std::log(sums.sum[0]);
  out.own = sigmoid(it * gap - total);
  out.log_positives = log_add(it * gap, total);
  out.attracted = out.own * gap + (1 - out.own) * (ahead + sums.moment[0] / sums.sum[0]);
  out.share = 1 / (1 + number);
  out.mean = (gap + number * (ahead + sums.moment[1] / sums.sum[1])) * out.share;
  return out;
}

// One row of the table; logits are taken relative to that of the hardest negative, so that large
// scores keep the digits of their difference. `weight`: of the row in the loss.
template <class T>
double finish(const InfoNceRule& rule, const GivenScores& given, const ScoreRow& row, double s,
              double weight, index_t i) {
  const double it = 1 / rule.temperature, beta = rule.weighted ? rule.hardness : 0;
  const bool normalized = rule.exponents() == 2;
  const ScoreSums& sums = row.negatives;
  const bool some = sums.count > 0;
  const double base = some ? sums.most : s, gap = s - base;
  double shift[2] = {}, moment[2] = {};
  for (int e = 0; e < rule.exponents() && some; ++e) {
    shift[e] = std::log(sums.sum[e]);
    moment[e] = sums.moment[e] / sums.sum[e];
  }
  double log_negatives = kMinusInf;
  if (some)
    log_negatives =
        shift[0] + (normalized ? std::log(double(sums.count)) - shift[1] : beta * base);
  const Further positives = further_of(row.further, it, gap, base);
  const double above = log_negatives - positives.log_positives, pi = sigmoid(above);

  T* table = static_cast<T*>(given.table) + i;
  auto put = [&](int at, double value) { table[at * given.scores.rows] = T(value); };
  double loss = softplus(above);
  double inverse = pi * (moment[0] - positives.attracted);
  if (row.further.count > 0) {
    loss += positives.log_positives - it * positives.mean;
    inverse += positives.attracted - positives.mean;
  }
  put(kScoreLoss, loss);
  put(kScorePositive, s);
  put(kScoreLogNegatives, log_negatives + it * base);
  put(kScoreHardest, sums.most);
  put(kScorePositiveGrad,
      weight * it * (positives.own - positives.share - pi * positives.own));
  put(kScoreTemperatureGrad, -it * it * weight * inverse);
  const double by_weights = normalized ? moment[0] - moment[1] : moment[0] + base;
  put(kScoreHardnessGrad, rule.weighted && some ? weight * pi * by_weights : 0);
  put(kScoreShift, shift[0]);
  put(kScoreShift + 1, shift[1]);
  put(kScoreGrad, weight * pi * (rule.detach_weights ? it : it + beta));
  put(kScoreGrad + 1, normalized && !rule.detach_weights ? -weight * pi * beta : 0);
  const bool more = row.further.count > 0;
  put(kScoreExtraMost, more ? row.further.most : 0);
  put(kScoreExtraShift, more ? std::log(row.further.sum[0]) : 0);
  put(kScoreExtraGrad, more ? weight * it * (1 - pi) * (1 - positives.own) : 0);
  put(kScoreExtraGrad + 1, more ? -weight * it * positives.share : 0);
  return loss;
}

template <class T>
void forward(const InfoNceRule& rule, const GivenScores& given, T* loss, index_t* negatives,
             index_t* hardest_column) {
  const ScoreCall call = call_of(rule, given);
  const ScoreOps& ops = *kernels().score_info_nce;
  const index_t rows = given.scores.rows;
  const bool own = !given.positive.data;
  const Matrix& from = own ? given.scores : given.positive;
  const index_t element = from.row_stride + (own ? from.col_stride : 0);
  std::vector<double> positive(std::size_t(rows), 0.0), found(positive);
  ops.read({from.data, rows, 1, element, 1, from.dtype}, positive.data());
  const bool mean = rule.reduction == Reduction::mean;
  const double weight = mean ? 1 / double(std::max<index_t>(rows, 1)) : 1;
  over_rows(given.scores, [&](index_t begin, index_t end, char* scratch) {
    ScoreRow block[kMostRows];
    ops.sums(call, begin, end, scratch, block);
    for (index_t i = begin; i < end; ++i) {
      const ScoreRow& row = block[i - begin];
      const auto at = std::size_t(i);
      found[at] = finish<T>(rule, given, row, positive[at], weight, i);
      negatives[i] = row.negatives.count;
      hardest_column[i] = row.negatives.column;
    }
  });
  double total = 0;
  for (index_t i = 0; i < rows; ++i) total += weight * found[std::size_t(i)];
  if (rule.reduction == Reduction::none)
    std::copy(found.begin(), found.end(), loss);
  else
    loss[0] = T(total);
}

template <class T>
double dot(const GivenScores& given, int row, const T* grad, index_t grad_step) {
  const T* values = static_cast<const T*>(given.table) + row * given.scores.rows;
  double sum = 0;
  for (index_t i = 0; i < given.scores.rows; ++i)
    sum += double(values[i]) * double(grad[i * grad_step]);
  return sum;
}

template <class T>
void backward(const InfoNceRule& rule, const GivenScores& given, const T* grad, index_t grad_step,
              const ScoreGrads& out) {
  const ScoreCall call = call_of(rule, given);
  const ScoreOps& ops = *kernels().score_info_nce;
  const index_t rows = given.scores.rows;
  const T* table = static_cast<const T*>(given.table);
  auto of = [&](int at, index_t i) { return double(table[at * rows + i]); };
  if (out.scores.data)
    over_rows(given.scores, [&](index_t begin, index_t end, char* scratch) {
      ScoreFactors factors[kMostRows];
      for (index_t i = begin; i < end; ++i) {
        const double g = double(grad[i * grad_step]);
        factors[i - begin] = {of(kScoreHardest, i),
                              {g * of(kScoreGrad, i), g * of(kScoreGrad + 1, i)},
                              {of(kScoreShift, i), of(kScoreShift + 1, i)},
                              of(kScoreExtraMost, i), of(kScoreExtraShift, i),
                              g * of(kScoreExtraGrad, i), g * of(kScoreExtraGrad + 1, i),
                              g * of(kScorePositiveGrad, i)};
      }
      ops.gradient(call, factors, begin, end, scratch, out.scores);
    });
  if (out.positive.data) {
    std::vector<double> values;
    for (index_t i = 0; i < rows; ++i)
      values.push_back(double(grad[i * grad_step]) * of(kScorePositiveGrad, i));
    ops.write(values.data(), out.positive);
  }
  if (out.temperature)
    *static_cast<T*>(out.temperature) = T(dot(given, kScoreTemperatureGrad, grad, grad_step));
  if (out.hardness)
    *static_cast<T*>(out.hardness) = T(dot(given, kScoreHardnessGrad, grad, grad_step));
}

bool in_double(const GivenScores& given) { return given.scores.dtype == DType::f64; }

}  // namespace

void score_info_nce(const InfoNceRule& rule, const GivenScores& given, void* loss,
                    index_t* negatives, index_t* hardest_column) {
  if (in_double(given))
    return forward(rule, given, static_cast<double*>(loss), negatives, hardest_column);
  forward(rule, given, static_cast<float*>(loss), negatives, hardest_column);
}

void score_info_nce_backward(const InfoNceRule& rule, const GivenScores& given, const void* grad,
                             index_t grad_step, const ScoreGrads& out) {
  if (in_double(given))
    return backward(rule, given, static_cast<const double*>(grad), grad_step, out);
  backward(rule, given, static_cast<const float*>(grad), grad_step, out);
}

}  // namespace sede
