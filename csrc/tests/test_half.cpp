// Banks of bf16, f16 and int8 rows under fp32 and bf16 queries, and the ring write into each of
// them, against loops in double on the stored values.
#include "store.h"

using namespace sede_test;

namespace {

void test_bank(DType query_dtype, DType bank_dtype, index_t queries, index_t rows, index_t dim) {
  const Store query = filled(query_dtype, queries, dim, 1), bank = filled(bank_dtype, rows, dim, 2);
  const auto bank_ids = random_ids(rows, 5, 4);
  const float scales[] = {9, 2, 11};
  sede::BankLse op{};
  op.query = query.matrix(), op.bank = bank.matrix(), op.row_scale = bank.scales();
  op.bank_ids = bank_ids.data();
  op.scales = scales, op.exponents = 3;
  op.select = sede::Select::keep, op.empty_slots = true;
  op.accumulators = 2, op.accumulate[0] = 2, op.accumulate[1] = 0;
  const std::size_t n = std::size_t(queries);
  std::vector<float> lse(3 * n), acc(2 * n * std::size_t(dim));
  std::vector<index_t> count(n);
  sede::bank_lse(op, {lse.data(), nullptr, acc.data(), count.data(), nullptr, nullptr});
  // Weights in bf16 carry 2^-9 each; all else is summed in fp32.
  const bool pairs = query_dtype == DType::bf16;
  const double tolerance = pairs ? 3e-3 : 2e-5;
  for (index_t i = 0; i < queries; ++i)
    for (int a = 0; a < 2; ++a) {
      const int e = op.accumulate[a];
      double sum = 0;
      std::vector<double> want(std::size_t(dim), 0.0);
      for (index_t j = 0; j < rows; ++j) {
        if (bank_ids[std::size_t(j)] == -1) continue;
        double s = 0;
        for (index_t d = 0; d < dim; ++d) s += query.get(i, d) * bank.get(j, d);
        const double weight = std::exp(double(scales[e]) * s);
        sum += weight;
        for (index_t d = 0; d < dim; ++d) want[std::size_t(d)] += weight * bank.get(j, d);
      }
      near(double(lse[std::size_t(e) * n + std::size_t(i)]), std::log(sum), tolerance, "half lse");
      for (index_t d = 0; d < dim; ++d)
        near(double(acc[std::size_t((a * queries + i) * dim + d)]),
             want[std::size_t(d)] / (sum > 0 ? sum : 1), tolerance, "half acc");
    }
}

void test_ring(DType dtype, bool normalize) {
  const index_t size = 37, dim = 21, keys = 30, first = 20;
  const auto input = random_matrix<float>(keys, dim, 3);
  const auto key_ids = random_ids(keys, 1000, 5);
  Store ring(dtype, size, dim);
  std::vector<index_t> ids(std::size_t(size), -1);
  sede::enqueue({ring.matrix(), ring.scale.data(), ids.data(), matrix(input, keys, dim),
                 key_ids.data(), first, normalize});
  const double unit = dtype == DType::f32 ? 1e-6 : dtype == DType::f16 ? 1e-3 : 8e-3;
  for (index_t n = 0; n < keys; ++n) {
    const index_t slot = (first + n) % size;
    double norm = 0;
    for (index_t d = 0; d < dim; ++d) norm += std::pow(double(input[std::size_t(n * dim + d)]), 2);
    norm = normalize ? std::sqrt(norm) : 1;
    expect(ids[std::size_t(slot)] == key_ids[std::size_t(n)], "ring id");
    for (index_t d = 0; d < dim; ++d)
      near(ring.get(slot, d), double(input[std::size_t(n * dim + d)]) / norm, unit, "ring value");
  }
  for (index_t slot = first + keys - size; slot < first; ++slot)
    expect(ids[std::size_t(slot)] == -1 && ring.get(slot, 0) == 0, "other slots are untouched");
}

}  // namespace

int main() {
  return on_every_isa([] {
    for (DType query : {DType::f32, DType::bf16, DType::f16})
      for (DType bank : {DType::f32, DType::bf16, DType::f16, DType::i8}) {
        test_bank(query, bank, 3, 5, 7);
        test_bank(query, bank, 1, 40, 1);
        test_bank(query, bank, 35, 150, 33);
      }
    for (DType dtype : {DType::f32, DType::bf16, DType::f16, DType::i8})
      for (bool normalize : {false, true}) test_ring(dtype, normalize);
  });
}
