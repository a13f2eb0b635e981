// Matrices of every dtype a bank may have, written and read one value at a time.
#pragma once

#include <algorithm>
#include <cstring>

#include "check.h"

namespace sede_test {

using sede::DType;

inline std::uint16_t to_bf16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return std::uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline float from_bf16(std::uint16_t half) {
  const std::uint32_t bits = std::uint32_t(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Half precision from its definition, for |x| <= 1.
inline std::uint16_t to_f16(float x) {
  int exponent;
  std::frexp(std::fabs(x), &exponent);
  exponent = std::max(exponent, -13);
  const double units = std::nearbyint(std::ldexp(std::fabs(double(x)), 11 - exponent));
  return std::uint16_t((exponent + 13) * 1024 + int(units) + (std::signbit(x) ? 0x8000 : 0));
}
inline double from_f16(std::uint16_t half) {
  const int exponent = half >> 10 & 31, units = half & 1023;
  const double x = exponent ? std::ldexp(1024 + units, exponent - 25) : std::ldexp(units, -24);
  return half & 0x8000 ? -x : x;
}

inline index_t bytes(DType dtype) {
  return dtype == DType::f32 ? 4 : dtype == DType::i8 ? 1 : 2;
}

// A matrix of any of the types, with the values it holds: in rows, or in columns as (D, K).
struct Store {
  DType dtype;
  index_t rows, columns;
  bool in_columns;
  std::vector<char> memory;
  std::vector<float> scale;

  Store(DType type, index_t r, index_t c, bool transposed = false)
      : dtype(type),
        rows(r),
        columns(c),
        in_columns(transposed),
        memory(std::size_t(r * c * bytes(type)), 0) {
    if (type == DType::i8) scale.assign(std::size_t(r), 0.0f);
  }
  sede::Matrix matrix() const {
    return {memory.data(), rows, columns, in_columns ? 1 : columns, in_columns ? rows : 1, dtype};
  }
  index_t at(index_t row, index_t column) const {
    return (in_columns ? column * rows + row : row * columns + column) * bytes(dtype);
  }
  const float* scales() const { return scale.empty() ? nullptr : scale.data(); }

  void set(index_t row, index_t column, float x) {
    char* p = memory.data() + at(row, column);
    const std::uint16_t half = to_f16(x), brain = to_bf16(x);
    const std::int8_t byte = std::int8_t(std::lround(x * 127));
    if (dtype == DType::f32) std::memcpy(p, &x, 4);
    if (dtype == DType::f16) std::memcpy(p, &half, 2);
    if (dtype == DType::bf16) std::memcpy(p, &brain, 2);
    if (dtype == DType::i8) std::memcpy(p, &byte, 1), scale[std::size_t(row)] = 1.0f / 127;
  }
  double get(index_t row, index_t column) const {
    const char* p = memory.data() + at(row, column);
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

inline Store filled(DType dtype, index_t rows, index_t columns, unsigned seed,
                    bool in_columns = false) {
  Store store(dtype, rows, columns, in_columns);
  const auto values = random_matrix<float>(rows, columns, seed);
  for (index_t r = 0; r < rows; ++r)
    for (index_t c = 0; c < columns; ++c)
      store.set(r, c, std::max(-1.0f, std::min(1.0f, values[std::size_t(r * columns + c)])));
  return store;
}

}  // namespace sede_test
