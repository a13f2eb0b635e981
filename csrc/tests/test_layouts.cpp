// Banks in rows and banks in columns, as (D, K), with few queries and many, with holes that hold NaN,
// and queries of every dtype and layout:
// the sums and the best rows against loops in double on the stored values.
#include <limits>

#include "store.h"

using namespace sede_test;

namespace {

struct Case {
  DType query_dtype, bank_dtype;
  index_t queries, rows, dim;
  bool in_columns, holes, query_in_columns = false;
};

struct Problem {
  Case c;
  Store query, bank;
  std::vector<index_t> ids;
  sede::BankLse op{};
  float scale = 8;

  explicit Problem(const Case& shape)
      : c(shape),
        query(filled(c.query_dtype, c.queries, c.dim, 1, c.query_in_columns)),
        bank(filled(c.bank_dtype, c.rows, c.dim, 2, c.in_columns)) {
    for (index_t j = 0; j < c.rows; ++j) ids.push_back(c.holes && j % 97 > 90 ? -1 : j);
    for (index_t j = 0; j < c.rows; ++j)
      if (ids[std::size_t(j)] == -1 && c.bank_dtype != DType::i8)
        for (index_t d = 0; d < c.dim; ++d) spoil(j, d);
    op.query = query.matrix(), op.bank = bank.matrix(), op.row_scale = bank.scales();
    op.bank_ids = ids.data(), op.select = sede::Select::keep, op.empty_slots = true;
  }

  // NaN of every width.
  void spoil(index_t row, index_t column) {
    std::memset(bank.memory.data() + bank.at(row, column), 0xff, std::size_t(bytes(c.bank_dtype)));
  }
  bool filled_slot(index_t j) const { return ids[std::size_t(j)] != -1; }
  double similarity(index_t i, index_t j) const {
    double s = 0;
    for (index_t d = 0; d < c.dim; ++d) s += query.get(i, d) * bank.get(j, d);
    return s;
  }
};

void test_sums(const Case& c) {
  Problem p(c);
  p.op.scales = &p.scale, p.op.exponents = p.op.accumulators = 1;
  std::vector<float> lse(std::size_t(c.queries)), acc(std::size_t(c.queries * c.dim));
  std::vector<index_t> count(std::size_t(c.queries));
  sede::bank_lse(p.op, {lse.data(), nullptr, acc.data(), count.data(), nullptr, nullptr});
  const bool pairs = c.query_dtype == DType::bf16 && c.bank_dtype != DType::f32;
  for (index_t i = 0; i < c.queries; ++i) {
    double sum = 0;
    index_t valid = 0;
    std::vector<double> want(std::size_t(c.dim), 0.0);
    for (index_t j = 0; j < c.rows; ++j) {
      if (!p.filled_slot(j)) continue;
      const double weight = std::exp(double(p.scale) * p.similarity(i, j));
      sum += weight, ++valid;
      for (index_t d = 0; d < c.dim; ++d) want[std::size_t(d)] += weight * p.bank.get(j, d);
    }
    expect(count[std::size_t(i)] == valid, "count");
    near(double(lse[std::size_t(i)]), std::log(sum), 1e-5, "lse");
    for (index_t d = 0; d < c.dim; ++d)
      near(double(acc[std::size_t(i * c.dim + d)]), want[std::size_t(d)] / sum, pairs ? 2e-3 : 1e-5,
           "acc");
  }
}

void test_best(const Case& c, index_t k) {
  Problem p(c);
  std::vector<float> values(std::size_t(c.queries * k));
  std::vector<index_t> indices(values.size());
  sede::hardest(p.op, k, values.data(), indices.data());
  for (index_t i = 0; i < c.queries; ++i) {
    std::vector<std::pair<double, index_t>> all;
    for (index_t j = 0; j < c.rows; ++j)
      if (p.filled_slot(j)) all.emplace_back(-p.similarity(i, j), j);
    std::sort(all.begin(), all.end());
    for (index_t n = 0; n < k; ++n) {
      const std::size_t at = std::size_t(i * k + n);
      const bool some = n < index_t(all.size());
      near(double(values[at]),
           some ? -all[std::size_t(n)].first : -std::numeric_limits<double>::infinity(), 1e-5, "value");
      expect(some ? p.filled_slot(indices[at]) : indices[at] == -1, "index");
    }
  }
}

}  // namespace

int main() {
  return on_every_isa([] {
    for (DType query : {DType::f32, DType::bf16})
      for (DType bank : {DType::f32, DType::bf16, DType::f16, DType::i8})
        for (bool in_columns : {false, true})
          for (bool holes : {false, true})
            for (index_t queries : {1, 2, 3, 4, 7, 11, 12, 18}) {
              // Whole vectors and a rest; an odd D, and columns an odd number of elements apart.
              test_sums({query, bank, queries, 98, 19, in_columns, holes});
              test_sums({query, bank, queries, 67, 4, in_columns, holes});
              test_sums({query, bank, queries, 40, 0, in_columns, holes});
              test_best({query, bank, queries, 70, 17, in_columns, holes}, 1 + queries);
            }
    // Several tiles.
    for (bool in_columns : {false, true})
      for (bool holes : {false, true})
        for (DType dtype : {DType::f32, DType::bf16})
          for (index_t queries : {1, 3, 5, 9})
            test_sums({dtype, dtype, queries, 1300, 9, in_columns, holes});
    // Queries are packed a block of columns at a time, and the last panel is not full.
    for (DType query : {DType::f32, DType::bf16, DType::f16})
      for (bool query_in_columns : {false, true})
        for (index_t dim : {1, 16, 64, 83, 150})
          for (index_t queries : {20, 45})
            test_sums({query, query, queries, 24, dim, false, false, query_in_columns});
  });
}
