// The end of the weighted InfoNCE: losses, statistics and unit gradients of the rows from the sums of
// all segments.
#include <algorithm>

#include "info_nce_row.h"
#include "info_nce_table.h"

namespace sede {
namespace {

// exp(part - total): the share of a segment in a sum.
double share_of(double part, double total, bool alone) {
  if (part == kMinusInf) return 0;
  return alone ? 1 : std::exp(part - total);
}

template <class T>
RowSums add_up(const std::vector<InfoNceSums>& segments, int exponents, index_t rows, index_t i) {
  RowSums sum;
  for (const InfoNceSums& part : segments) sum.count += double(part.count[i]);
  for (int e = 0; e < exponents; ++e) {
    const index_t at = e * rows + i;
    for (const InfoNceSums& part : segments)
      sum.lse[e] = segments.size() == 1 ? double(static_cast<const T*>(part.lse)[at])
                                        : log_add(sum.lse[e], static_cast<const T*>(part.lse)[at]);
    for (const InfoNceSums& part : segments)
      if (part.moment)
        sum.moment[e] += share_of(static_cast<const T*>(part.lse)[at], sum.lse[e],
                                  segments.size() == 1) *
                         double(static_cast<const T*>(part.moment)[at]);
  }
  return sum;
}

// The weights of the rows in the reduced loss, into the table; returns the reduced loss.
template <class T>
double reduce(const InfoNceRule& rule, const InfoNceSide& side, const std::vector<RowLoss>& found) {
  const std::size_t rows = found.size();
  T* weight = table_row<T>(side, kWeight);
  auto focus = [&](double loss) { return std::max(-std::expm1(-loss), 0.0); };
  double largest = 1, total = double(rows);
  if (rule.positive_focus != 0 && rule.reduction == Reduction::mean) {
    // Relative to the largest base, before the power: the bases themselves may underflow.
    largest = 0, total = 0;
    for (const RowLoss& row : found) largest = std::max(largest, focus(row.loss));
    if (largest == 0) largest = 1;
    for (const RowLoss& row : found) total += std::pow(focus(row.loss) / largest, rule.positive_focus);
    if (total == 0) total = 1;
  }
  double loss = 0;
  for (std::size_t i = 0; i < rows; ++i) {
    double w = rule.share;
    if (rule.positive_focus != 0)
      w *= std::pow(focus(found[i].loss) / largest, rule.positive_focus);
    if (rule.reduction == Reduction::mean) w /= total;
    weight[i] = T(w);
    loss += w * found[i].loss;
  }
  return loss;
}

template <class T>
void fill_table(const InfoNceRule& rule, const InfoNceSide& side,
                const std::vector<InfoNceSums>& sums, const RowLoss& row, const RowSums& all,
                const RowSums& extra, double weight, index_t i) {
  auto put = [&](int at, double value) { table_row<T>(side, at)[i] = T(value); };
  put(kLoss, row.loss);
  put(kLogNegatives, row.log_negatives);
  put(kPositiveGrad, weight * row.positive);
  const double it = 1 / rule.temperature;
  put(kTemperatureGrad, -it * it * weight * row.inverse);
  put(kHardnessGrad, weight * row.hardness);
  for (int e = 0; e < 2; ++e) {
    put(kLse + e, all.lse[e]);
    put(kLseGrad + e, weight * row.lse[e]);
    put(kExtraGrad + e, weight * row.extra[e]);
  }
  put(kExtraLse, extra.lse[0]);
  put(kExtraLse + 1, extra.count > 0 ? std::log(extra.count) : kMinusInf);
  if (side.negatives) side.negatives[i] = index_t(all.count);
  T top = T(kMinusInf);
  index_t index = -1;
  for (const InfoNceSums& part : sums) {
    if (!part.top) continue;
    const T value = static_cast<const T*>(part.top)[i];
    if (value > top || value != value) {
      top = value;
      index = part.in_bank ? part.top_index[i] : -1;
    }
  }
  put(kHardest, double(top));
  if (side.hardest_index) side.hardest_index[i] = index;
}

// The gradient of the queries: all accumulators, weighted, and the positives.
template <class T>
void combine(const InfoNceRule& rule, const InfoNceSide& side, const std::vector<InfoNceSums>& sums,
             const std::vector<InfoNceSums>& extra) {
  const index_t rows = side.query.rows, dim = side.query.cols;
  std::vector<const T*> part, weight;
  std::vector<T> weights;
  auto take = [&](const std::vector<InfoNceSums>& segments, int accumulators, int lse, int grad) {
    for (const InfoNceSums& segment : segments)
      for (int a = 0; a < accumulators && segment.acc; ++a) {
        part.push_back(static_cast<const T*>(segment.acc) + a * rows * dim);
        for (index_t i = 0; i < rows; ++i)
          weights.push_back(T(share_of(static_cast<const T*>(segment.lse)[a * rows + i],
                                       table_row<T>(side, lse + a)[i], segments.size() == 1) *
                              double(table_row<T>(side, grad + a)[i])));
      }
  };
  take(sums, rule.accumulators(), kLse, kLseGrad);
  take(extra, 2, kExtraLse, kExtraGrad);
  for (std::size_t n = 0; n < part.size(); ++n) weight.push_back(weights.data() + index_t(n) * rows);
  const CombineCall<T> call{part.data(), weight.data(), int(part.size()), side.positive,
                            table_row<T>(side, kPositiveGrad), static_cast<T*>(side.query_grad)};
  over_rows(rows, dim, [&](index_t begin, index_t end) { row_ops<T>().combine(call, begin, end); });
}

template <class T>
void finish(const InfoNceRule& rule, const InfoNceSide& side, const std::vector<InfoNceSums>& sums,
            const std::vector<InfoNceSums>& extra, T* loss) {
  const index_t rows = side.query.rows;
  std::vector<RowLoss> found(static_cast<std::size_t>(rows));
  std::vector<RowSums> all(found.size()), more(found.size());
  constexpr index_t kRowCost = 256;  // of a row's logarithms, in elements
  over_rows(rows, kRowCost, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      const auto at = std::size_t(i);
      all[at] = add_up<T>(sums, rule.exponents(), rows, i);
      more[at] = add_up<T>(extra, 2, rows, i);
      found[at] = row_loss(rule, table_row<T>(side, kPositive)[i], all[at], more[at]);
    }
  });
  const double total = reduce<T>(rule, side, found);
  const T* weight = table_row<T>(side, kWeight);
  for (index_t i = 0; i < rows; ++i)
    fill_table<T>(rule, side, sums, found[std::size_t(i)], all[std::size_t(i)],
                  more[std::size_t(i)], weight[i], i);
  if (rule.reduction == Reduction::none)
    for (index_t i = 0; i < rows; ++i) loss[i] += T(weight[i] * found[std::size_t(i)].loss);
  else
    loss[0] += T(total);
  if (side.query_grad) combine<T>(rule, side, sums, extra);
}

}  // namespace

void info_nce_finish(const InfoNceRule& rule, const InfoNceSide& side,
                     const std::vector<InfoNceSums>& sums, const std::vector<InfoNceSums>& extra,
                     void* loss) {
  if (in_double(side)) return finish<double>(rule, side, sums, extra, static_cast<double*>(loss));
  finish<float>(rule, side, sums, extra, static_cast<float*>(loss));
}

}  // namespace sede
