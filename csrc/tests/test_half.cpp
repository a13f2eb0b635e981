// Banks of bf16, f16 and int8 rows under fp32 and bf16 queries, and the ring write into each of
// them, against loops in double on the stored values.
#include <algorithm>
#include <cstring>

#include "check.h"

using namespace sede_test;
using sede::DType;

namespace {

std::uint16_t to_bf16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return std::uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
float from_bf16(std::uint16_t half) {
  const std::uint32_t bits = std::uint32_t(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Half precision from its definition, for |x| <= 1.
std::uint16_t to_f16(float x) {
  int exponent;
  std::frexp(std::fabs(x), &exponent);
  exponent = std::max(exponent, -13);
  const double units = std::nearbyint(std::ldexp(std::fabs(double(x)), 11 - exponent));
  return std::uint16_t((exponent + 13) * 1024 + int(units) + (std::signbit(x) ? 0x8000 : 0));
}
double from_f16(std::uint16_t half) {
  const int exponent = half >> 10 & 31, units = half & 1023;
  const double x = exponent ? std::ldexp(1024 + units, exponent - 25) : std::ldexp(units, -24);
  return half & 0x8000 ? -x : x;
}

index_t bytes(DType dtype) {
  return dtype == DType::f32 ? 4 : dtype == DType::i8 ? 1 : 2;
}

// Rows of any of the types, with the values they hold.
struct Store {
  DType dtype;
  index_t rows, columns;
  std::vector<char> memory;
  std::vector<float> scale;

  Store(DType type, index_t r, index_t c)
      : dtype(type), rows(r), columns(c), memory(std::size_t(r * c * bytes(type)), 0) {
    if (type == DType::i8) scale.assign(std::size_t(r), 0.0f);
  }
  sede::Matrix matrix() const { return {memory.data(), rows, columns, columns, 1, dtype}; }
  const float* scales() const { return scale.empty() ? nullptr : scale.data(); }

  void set(index_t row, index_t column, float x) {
    char* p = memory.data() + (row * columns + column) * bytes(dtype);
    const std::uint16_t half = to_f16(x), brain = to_bf16(x);
    const std::int8_t byte = std::int8_t(std::lround(x * 127));
    if (dtype == DType::f32) std::memcpy(p, &x, 4);
    if (dtype == DType::f16) std::memcpy(p, &half, 2);
    if (dtype == DType::bf16) std::memcpy(p, &brain, 2);
    if (dtype == DType::i8) std::memcpy(p, &byte, 1), scale[std::size_t(row)] = 1.0f / 127;
  }
  double get(index_t row, index_t column) const {
    const char* p = memory.data() + (row * columns + column) * bytes(dtype);
    if (dtype == DType::i8)
      return double(*reinterpret_cast<const std::int8_t*>(p)) * double(scale[std::size_t(row)]);
    if (dtype == DType::f32) {
      float x;
      std::memcpy(&x, p, 4);
      return double(x);
    }
    std::uint16_t half;
    std::memcpy(&half, p, 2);
    return dtype == DType::bf16 ? double(from_bf16(half)) : from_f16(half);
  }
};

Store filled(DType dtype, index_t rows, index_t columns, unsigned seed) {
  Store store(dtype, rows, columns);
  const auto values = random_matrix<float>(rows, columns, seed);
  for (index_t r = 0; r < rows; ++r)
    for (index_t c = 0; c < columns; ++c)
      store.set(r, c, std::max(-1.0f, std::min(1.0f, values[std::size_t(r * columns + c)])));
  return store;
}

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
