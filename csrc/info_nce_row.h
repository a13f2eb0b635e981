// One row of the weighted InfoNCE: its loss and derivatives from sums, in double. docs/method.md has
// the formulas. Names: it = 1 / tau, L(c) a log-sum-exp, M(c) its mean similarity.
#pragma once

#include <cmath>
#include <limits>

#include "info_nce.h"

namespace sede {

constexpr double kMinusInf = -std::numeric_limits<double>::infinity();

inline double log_add(double a, double b) {
  const double most = a > b ? a : b;
  if (a == b && std::isinf(a)) return a;
  return most + std::log1p(std::exp(-std::fabs(a - b)));
}
inline double softplus(double x) {
  return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
}
inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// A row's sums over all segments.
struct RowSums {
  double lse[2] = {kMinusInf, kMinusInf};
  double moment[2] = {0, 0};
  double count = 0;
};

struct RowLoss {
  double loss, log_negatives;
  double positive;     // d loss / d s+
  double inverse;      // d loss / d it
  double hardness;     // d loss / d beta
  double lse[2];       // d loss / d L(c), times what replaces c in the gradient of the query
  double extra[2];     // the same of the further positives at it and 0
};

// LN after debiasing, and its derivatives by LN, by the positive's logit and by it.
struct Debiased {
  double value, by_negatives = 1, by_positive = 0, by_inverse = 0;
};

inline Debiased debias(double log_negatives, double logit, double count, double it,
                       double tau_plus) {
  Debiased out{log_negatives};
  if (tau_plus == 0 || std::isnan(log_negatives)) return out;
  if (count == 0) return {kMinusInf, 0};
  const double log_n = std::log(count), floor = log_n - it;
  const double below = logit + log_n + std::log(tau_plus) - log_negatives;
  if (below < 0) {
    const double rest = -std::expm1(below);  // the share that stays
    const double corrected = log_negatives + std::log(rest) - std::log1p(-tau_plus);
    if (corrected >= floor) return {corrected, 1 / rest, -std::exp(below) / rest};
  }
  return {floor, 0, 0, -1};
}

inline RowLoss row_loss(const InfoNceRule& rule, double s, const RowSums& sums,
                        const RowSums& extra) {
  const double it = 1 / rule.temperature, beta = rule.weighted ? rule.hardness : 0;
  const double logit = it * s;
  const bool normalized = rule.exponents() == 2;
  double log_negatives = sums.lse[0];
  if (normalized)
    log_negatives =
        sums.count == 0 ? kMinusInf : std::log(sums.count) + sums.lse[0] - sums.lse[1];
  const Debiased negatives = debias(log_negatives, logit, sums.count, it, rule.tau_plus);

  const double own = sigmoid(logit - extra.lse[0]);  // the share of its own positive: 1 without more
  const double further = extra.count / (1 + extra.count);
  const double log_positives = extra.count == 0 ? logit : log_add(logit, extra.lse[0]);
  const double mean = (s + extra.count * extra.moment[1]) / (1 + extra.count);
  const double attracted = own * s + (1 - own) * extra.moment[0];
  const double above = negatives.value - log_positives, pi = sigmoid(above);

  RowLoss row{};
  row.loss = softplus(above);
  row.log_negatives = negatives.value;
  row.positive = it * pi * (negatives.by_positive - own);
  const double moment = normalized ? sums.moment[0] - sums.moment[1] : sums.moment[0];
  row.inverse = pi * (negatives.by_negatives * sums.moment[0] + negatives.by_positive * s +
                      negatives.by_inverse - attracted);
  row.hardness = rule.weighted ? pi * negatives.by_negatives * moment : 0;
  const double outer = pi * negatives.by_negatives;
  row.lse[0] = outer * (rule.detach_weights ? it : it + beta);
  row.lse[1] = normalized && !rule.detach_weights ? -outer * beta : 0;
  if (extra.count != 0) {
    row.loss += log_positives - it * mean;
    row.positive += it * (own - 1 / (1 + extra.count));
    row.inverse += attracted - mean;
    row.extra[0] = it * sigmoid(-above) * sigmoid(extra.lse[0] - logit);
    row.extra[1] = -it * further;
  }
  return row;
}

}  // namespace sede
