// The nearest source of each query fragment and the gradients, against loops in double.
#include <limits>

#include "../fragments.h"
#include "check.h"

using namespace sede_test;

namespace {

const float kNan = std::numeric_limits<float>::quiet_NaN();
const float kInf = std::numeric_limits<float>::infinity();

// S with ties, infinities and NaN in places.
std::vector<float> products(index_t rows, index_t columns, unsigned seed) {
  std::vector<float> s = random_matrix<float>(rows, columns, seed);
  for (std::size_t n = 0; n < s.size(); ++n) {
    if (n % 5 == 0) s[n] = 0.25f;
    if (n % 7 == 0) s[n] = n % 2 ? 0.0f : -0.0f;
    if (n % 31 == 0) s[n] = kNan;
    if (n % 37 == 0) s[n] = n % 2 ? kInf : -kInf;
  }
  return s;
}

void test_nearest(index_t columns) {
  const std::vector<index_t> begin{0, 3, 3, 4}, count{3, 0, 1, 9};
  const index_t sets = 4, rows = 13, stride = columns + 3;
  const std::vector<float> s = products(rows, columns, unsigned(columns));
  std::vector<float> score(std::size_t(sets * stride), -7.0f);
  std::vector<std::int32_t> source(score.size(), -7);
  sede::nearest({s.data(), sets, columns, begin.data(), count.data(), score.data(), source.data(), stride});
  for (index_t set = 0; set < sets; ++set)
    for (index_t c = 0; c < stride; ++c) {
      const std::size_t at = std::size_t(set * stride + c);
      if (c >= columns) {
        expect(score[at] == -7.0f && source[at] == -7, "columns beyond the last are left alone");
        continue;
      }
      float best = 0;
      std::int32_t where = 0;
      for (index_t r = 0; r < count[std::size_t(set)]; ++r) {
        const float x = s[std::size_t((begin[std::size_t(set)] + r) * columns + c)];
        const bool first_nan = std::isnan(x) && !std::isnan(best);
        if (r == 0 || x > best || first_nan) best = x, where = std::int32_t(r);
      }
      near(score[at], best, 0, "score of column " + std::to_string(c));
      expect(source[at] == where, "source of column " + std::to_string(c));
    }
}

void test_backward(index_t dim, index_t columns, bool for_rows, bool for_queries) {
  const index_t groups = 2, sets = 3, rows = 17;
  const std::vector<index_t> begin{0, 2, 2, 7, 8, 12}, count{2, 0, 5, 1, 4, 5};
  const std::vector<float> of_rows = random_matrix<float>(rows, dim, 1);
  const std::vector<float> queries = random_matrix<float>(groups * columns, dim, 2);
  std::vector<float> share = random_matrix<float>(groups * sets, columns, 3);
  std::vector<std::int32_t> source(share.size());
  for (std::size_t n = 0; n < share.size(); ++n) {
    const index_t most = count[n / std::size_t(columns)];
    source[n] = most ? std::int32_t(n % std::size_t(most)) : 0;
    if (n % 11 == 3) share[n] = 0.0f, source[n] = 0;
    if (n % 13 == 5) source[n] = n % 2 ? std::int32_t(most) : -1;  // adds nothing
  }
  std::vector<float> d_rows(of_rows.size(), 0.5f), d_queries(queries.size(), -0.5f);
  std::vector<double> want_rows(d_rows.begin(), d_rows.end());
  std::vector<double> want_queries(d_queries.begin(), d_queries.end());
  for (index_t set = 0; set < groups * sets; ++set)
    for (index_t c = 0; c < columns; ++c) {
      const std::size_t at = std::size_t(set * columns + c);
      if (source[at] < 0 || source[at] >= count[std::size_t(set)]) continue;
      for (index_t d = 0; d < dim; ++d) {
        const std::size_t row = std::size_t((begin[std::size_t(set)] + source[at]) * dim + d);
        const std::size_t query = std::size_t((set / sets * columns + c) * dim + d);
        want_rows[row] += double(share[at]) * queries[query];
        want_queries[query] += double(share[at]) * of_rows[row];
      }
    }
  sede::nearest_backward({groups, sets, columns, dim, begin.data(), count.data(), of_rows.data(),
                          queries.data(), share.data(), source.data(), for_rows ? d_rows.data() : nullptr,
                          for_queries ? d_queries.data() : nullptr});
  for (std::size_t n = 0; n < d_rows.size(); ++n)
    near(d_rows[n], for_rows ? want_rows[n] : 0.5, 2e-6, "d_rows " + std::to_string(n));
  for (std::size_t n = 0; n < d_queries.size(); ++n)
    near(d_queries[n], for_queries ? want_queries[n] : -0.5, 2e-6, "d_queries " + std::to_string(n));
}

// Groups, ragged sets and all aggregates, from the fragments on; gradients of sum_n weight_n out_n.
void test_sets(index_t dim, sede::Aggregate aggregate, bool by_query, bool ragged) {
  const index_t groups = 2, S = 3, Q = 4, R = 5, L = 11, pairs = groups * S * Q;
  const std::vector<float> source = random_matrix<float>(groups * S * R, dim, 4);
  const std::vector<float> query = random_matrix<float>(groups * Q * L, dim, 5);
  const std::vector<float> weight = random_matrix<float>(1, pairs, 6);
  std::vector<index_t> counts(std::size_t(groups * S), R), lengths(std::size_t(groups * Q), L);
  if (ragged) counts = {5, 0, 2, 1, 4, 5}, lengths = {3, 11, 0, 7, 1, 2, 10, 11};
  const float scale = 1.5f;
  const sede::LateAggregate how{aggregate, scale, by_query};
  const sede::LateSets op{groups, S, Q, R, L, dim, source.data(), query.data(),
                          ragged ? counts.data() : nullptr, ragged ? lengths.data() : nullptr};
  std::vector<float> out(std::size_t(pairs), -7.0f), score(std::size_t(pairs * L), -7.0f);
  std::vector<std::int32_t> nearest(score.size(), -7);
  sede::late_interaction(op, how, out.data(), score.data(), nearest.data());
  std::vector<float> d_source(source.size(), -7.0f), d_query(query.size(), -7.0f);
  sede::late_interaction_backward(op, how, weight.data(), score.data(), nearest.data(), d_source.data(),
                                  d_query.data());
  std::vector<double> want_source(source.size()), want_query(query.size());
  for (index_t g = 0; g < groups; ++g)
    for (index_t s = 0; s < S; ++s)
      for (index_t q = 0; q < Q; ++q) {
        const index_t set = g * S + s, other = g * Q + q;
        const index_t valid = lengths[std::size_t(other)];
        const std::size_t at = std::size_t(by_query ? other * S + s : set * Q + q);
        std::vector<double> best(std::size_t(valid), -1e30), share(best.size());
        std::vector<index_t> where(best.size());
        for (index_t l = 0; l < valid; ++l)
          for (index_t r = 0; r < counts[std::size_t(set)]; ++r) {
            double x = 0;
            for (index_t d = 0; d < dim; ++d)
              x += double(source[std::size_t((set * R + r) * dim + d)]) *
                   query[std::size_t((other * L + l) * dim + d)];
            if (x > best[std::size_t(l)]) best[std::size_t(l)] = x, where[std::size_t(l)] = r;
          }
        double total = 0, number = 0, most = -1e30;
        for (const double x : best) {
          total += std::exp(scale * x);
          number += x;
          most = x > most ? x : most;
        }
        if (aggregate == sede::Aggregate::mean) number /= double(valid);
        if (aggregate == sede::Aggregate::max) number = most;
        if (aggregate == sede::Aggregate::lse) number = std::log(total) / scale;
        if (valid == 0 || counts[std::size_t(set)] == 0) {
          near(out[at], 0, 0, "an empty side");
          continue;
        }
        near(out[at], number, 4e-6, "similarity " + std::to_string(at));
        for (index_t l = 0; l < valid; ++l) {
          const double x = best[std::size_t(l)];
          double of = weight[at];
          if (aggregate == sede::Aggregate::mean) of /= double(valid);
          if (aggregate == sede::Aggregate::max) of *= x == most ? 1 : 0;
          if (aggregate == sede::Aggregate::lse) of *= std::exp(scale * x) / total;
          const std::size_t row = std::size_t(set * R + where[std::size_t(l)]), column = std::size_t(other * L + l);
          for (std::size_t d = 0; d < std::size_t(dim); ++d) {
            want_source[row * std::size_t(dim) + d] += of * query[column * std::size_t(dim) + d];
            want_query[column * std::size_t(dim) + d] += of * source[row * std::size_t(dim) + d];
          }
        }
      }
  for (std::size_t n = 0; n < d_source.size(); ++n)
    near(d_source[n], want_source[n], 1e-5, "d_source " + std::to_string(n));
  for (std::size_t n = 0; n < d_query.size(); ++n)
    near(d_query[n], want_query[n], 1e-5, "d_query " + std::to_string(n));
}

}  // namespace

int main() {
  return on_every_isa([] {
    for (const index_t columns : {0, 1, 3, 4, 15, 16, 17, 63, 64, 79, 300}) test_nearest(columns);
    for (const index_t dim : {0, 1, 16, 23, 48, 128, 141, 144, 272}) test_backward(dim, 21, true, true);
    test_backward(32, 1, true, false);
    test_backward(32, 40, false, true);
    for (int n = 0; n < 16; ++n)
      test_sets(n % 3 ? 37 : 130, sede::Aggregate(n % 4), n / 4 % 2 == 1, n / 8 == 1);
  });
}
