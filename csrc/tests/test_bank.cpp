// The core op, the top-k and the in-batch gradients against naive loops in double, on odd sizes.
#include <algorithm>

#include "check.h"

using namespace sede_test;

namespace {

struct Case {
  index_t queries, rows, dim;
  sede::Select select;
  bool with_ids, limited;
};

template <class T>
struct Problem {
  Case c;
  std::vector<T> query, bank, limit, scales{T(9), T(2)};
  std::vector<index_t> query_ids, bank_ids;
  sede::BankLse op{};

  explicit Problem(const Case& shape)
      : c(shape),
        query(random_matrix<T>(c.queries, c.dim, 1)),
        bank(random_matrix<T>(c.rows, c.dim, 2)),
        limit(std::size_t(c.queries), T(0.37)),
        query_ids(random_ids(c.queries, 5, 3)),
        bank_ids(random_ids(c.rows, 5, 4)) {
    op.query = matrix(query, c.queries, c.dim);
    op.bank = matrix(bank, c.rows, c.dim);
    op.scales = scales.data();
    op.exponents = 2;
    op.select = c.select;
    op.empty_slots = true;
    if (c.with_ids) op.query_ids = query_ids.data(), op.bank_ids = bank_ids.data();
    if (c.limited) op.limit = limit.data();
  }

  double similarity(index_t i, index_t j) const {
    double s = 0;
    for (index_t d = 0; d < c.dim; ++d)
      s += double(query[std::size_t(i * c.dim + d)]) * double(bank[std::size_t(j * c.dim + d)]);
    return s;
  }

  bool valid(index_t i, index_t j) const {
    if (op.skip_diagonal && i == j) return false;
    if (c.limited && similarity(i, j) > double(limit[std::size_t(i)])) return false;
    if (!c.with_ids) return c.select != sede::Select::positive;
    const index_t own = query_ids[std::size_t(i)], other = op.bank_ids[j];
    if (op.empty_slots && other == -1) return false;
    if (c.select == sede::Select::keep) return true;
    const bool same = own == other && (op.empty_slots || other != -1);
    return same == (c.select == sede::Select::positive);
  }
};

template <class T>
void test_forward(const Case& c, double tolerance) {
  Problem<T> p(c);
  p.op.moments = p.op.hardest = true;
  p.op.accumulators = 2;
  p.op.accumulate[0] = 1, p.op.accumulate[1] = 0;
  const std::size_t n = std::size_t(c.queries);
  std::vector<T> lse(2 * n), moment(2 * n), acc(2 * n * std::size_t(c.dim)), top(n);
  std::vector<index_t> count(n), top_index(n);
  sede::bank_lse(p.op, {lse.data(), moment.data(), acc.data(), count.data(), top.data(),
                        top_index.data()});
  for (index_t i = 0; i < c.queries; ++i) {
    double best = -INFINITY;
    index_t best_index = -1, valid = 0;
    for (index_t j = 0; j < c.rows; ++j) {
      if (!p.valid(i, j)) continue;
      ++valid;
      if (p.similarity(i, j) > best) best = p.similarity(i, j), best_index = j;
    }
    expect(count[std::size_t(i)] == valid, "count");
    near(double(top[std::size_t(i)]), best, tolerance, "top");
    expect(top_index[std::size_t(i)] == best_index, "top index");
    for (int e = 0; e < 2; ++e) {
      double sum = 0, first = 0;
      std::vector<double> rows(std::size_t(c.dim), 0.0);
      for (index_t j = 0; j < c.rows; ++j) {
        if (!p.valid(i, j)) continue;
        const double s = p.similarity(i, j), weight = std::exp(double(p.scales[std::size_t(e)]) * s);
        sum += weight, first += weight * s;
        for (index_t d = 0; d < c.dim; ++d)
          rows[std::size_t(d)] += weight * double(p.bank[std::size_t(j * c.dim + d)]);
      }
      near(double(lse[std::size_t(e) * n + std::size_t(i)]), std::log(sum), tolerance, "lse");
      const double divisor = sum > 0 ? sum : 1;
      near(double(moment[std::size_t(e) * n + std::size_t(i)]), first / divisor, tolerance, "moment");
      const T* got = acc.data() + ((1 - e) * c.queries + i) * c.dim;
      for (index_t d = 0; d < c.dim; ++d)
        near(double(got[d]), rows[std::size_t(d)] / divisor, tolerance, "acc");
    }
  }
}

template <class T>
void test_hardest(const Case& c, index_t k, double tolerance) {
  Problem<T> p(c);
  p.op.exponents = 0;
  std::vector<T> values(std::size_t(c.queries * k));
  std::vector<index_t> indices(std::size_t(c.queries * k));
  sede::hardest(p.op, k, values.data(), indices.data());
  for (index_t i = 0; i < c.queries; ++i) {
    std::vector<std::pair<double, index_t>> all;
    for (index_t j = 0; j < c.rows; ++j)
      if (p.valid(i, j)) all.emplace_back(-p.similarity(i, j), j);
    std::sort(all.begin(), all.end());
    for (index_t n = 0; n < k; ++n) {
      const bool some = n < index_t(all.size());
      near(double(values[std::size_t(i * k + n)]),
           some ? -all[std::size_t(n)].first : -INFINITY, tolerance, "hardest value");
      expect(indices[std::size_t(i * k + n)] == (some ? all[std::size_t(n)].second : -1),
             "hardest index");
    }
  }
}

template <class T>
void test_batch_backward(Case c, double tolerance) {
  c.rows = c.queries;
  Problem<T> p(c);
  p.op.skip_diagonal = true;
  p.op.empty_slots = false;
  if (c.with_ids) p.op.bank_ids = p.op.query_ids;
  const std::size_t n = std::size_t(c.queries), size = n * std::size_t(c.dim);
  const std::vector<T> lse(2 * n, T(1.5)), grad = random_matrix<T>(2, c.queries, 7);
  std::vector<T> query_grad(size), key_grad(size);
  sede::batch_lse_backward(p.op, lse.data(), grad.data(), query_grad.data(), key_grad.data());
  std::vector<double> want_query(size, 0.0), want_key(size, 0.0);
  for (index_t i = 0; i < c.queries; ++i)
    for (index_t j = 0; j < c.rows; ++j) {
      if (!p.valid(i, j)) continue;
      double weight = 0;
      for (std::size_t e = 0; e < 2; ++e)
        weight += double(grad[e * n + std::size_t(i)]) *
                  std::exp(double(p.scales[e]) * p.similarity(i, j) - 1.5);
      for (index_t d = 0; d < c.dim; ++d) {
        want_query[std::size_t(i * c.dim + d)] += weight * double(p.bank[std::size_t(j * c.dim + d)]);
        want_key[std::size_t(j * c.dim + d)] += weight * double(p.query[std::size_t(i * c.dim + d)]);
      }
    }
  for (std::size_t m = 0; m < size; ++m) {
    near(double(query_grad[m]), want_query[m], tolerance, "dq");
    near(double(key_grad[m]), want_key[m], tolerance, "dk");
  }
}

}  // namespace

int main() {
  using sede::Select;
  const Case cases[] = {{1, 1, 1, Select::keep, false, false},
                        {3, 5, 7, Select::mask, true, false},
                        {33, 700, 17, Select::mask, true, true},
                        {17, 130, 300, Select::positive, true, false},
                        {140, 260, 33, Select::keep, true, false},
                        {5, 0, 8, Select::mask, false, false},
                        {40, 3000, 48, Select::mask, false, true}};
  return on_every_isa([&] {
    for (const Case& c : cases) {
      test_forward<float>(c, 1e-5);
      test_forward<double>(c, 1e-12);
      for (index_t k : {1, 6, 33}) test_hardest<float>(c, k, 1e-5);
      for (index_t k : {2, 200}) test_hardest<double>(c, k, 1e-12);
      test_batch_backward<float>(c, 2e-5);
      test_batch_backward<double>(c, 1e-12);
    }
  });
}
