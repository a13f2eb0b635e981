// Reading rows of any dtype and strides as float or double, and filling bank tiles.
#pragma once

#include "simd.h"

namespace sede {
namespace SEDE_ISA {
namespace {

SEDE_INLINE float from_bits(std::uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
SEDE_INLINE std::uint32_t to_bits(float x) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}
SEDE_INLINE float bf16_to_float(std::uint16_t h) { return from_bits(std::uint32_t(h) << 16); }

// Half precision by integer arithmetic (no branch, so that loops over it vectorise).
SEDE_INLINE float f16_to_float(std::uint16_t h) {
  const std::uint32_t magnitude = std::uint32_t(h & 0x7fff) << 13;
  // Re-bias by a product with 2^112, which also normalises subnormals; then repair inf and NaN.
  float x = from_bits(magnitude) * from_bits(0x77800000u);
  std::uint32_t bits = to_bits(x) | ((h & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u);
  return from_bits(bits | std::uint32_t(h & 0x8000) << 16);
}
SEDE_INLINE std::uint16_t float_to_bf16(float x) {
  const std::uint32_t bits = to_bits(x);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  return std::uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u | (bits >> 16) : rounded);
}
SEDE_INLINE std::uint16_t float_to_f16(float x) {
  const std::uint32_t bits = to_bits(x), sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Subnormal results: adding 0.5 leaves the rounded mantissa in the low bits.
  const std::uint32_t small = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
  const std::uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1)) >> 13;
  std::uint32_t half = magnitude < 0x38800000u ? small : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and above round to infinity
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return std::uint16_t(half | sign);
}

SEDE_INLINE float widen(float x) { return x; }
SEDE_INLINE double widen(double x) { return x; }
SEDE_INLINE float widen(std::int8_t x) { return float(x); }
struct Bf16 {
  std::uint16_t bits;
};
struct F16 {
  std::uint16_t bits;
};
SEDE_INLINE float widen(Bf16 x) { return bf16_to_float(x.bits); }
SEDE_INLINE float widen(F16 x) { return f16_to_float(x.bits); }

// As bf16: exact for those two, whose banks are multiplied so.
SEDE_INLINE std::uint16_t bf16_bits(Bf16 x) { return x.bits; }
SEDE_INLINE std::uint16_t bf16_bits(std::int8_t x) { return std::uint16_t(to_bits(float(x)) >> 16); }

// out[n * out_step] = in[n * in_step], n < count; the unit strides are told to the compiler.
template <class T, class S>
SEDE_INLINE void copy_row(const S* in, index_t in_step, T* out, index_t out_step, index_t count) {
  if (in_step == 1 && out_step == 1)
    for (index_t n = 0; n < count; ++n) out[n] = T(widen(in[n]));
  else
    for (index_t n = 0; n < count; ++n) out[n * out_step] = T(widen(in[n * in_step]));
}

template <class F>
SEDE_INLINE void with_type(DType dtype, const void* data, F f) {
  switch (dtype) {
    case DType::f32: return f((const float*)data);
    case DType::f64: return f((const double*)data);
    case DType::bf16: return f((const Bf16*)data);
    case DType::f16: return f((const F16*)data);
    case DType::i8: return f((const std::int8_t*)data);
  }
}

SEDE_INLINE index_t bytes_of(DType dtype) {
  index_t bytes = 0;
  with_type(dtype, nullptr, [&](auto* data) { bytes = sizeof(*data); });
  return bytes;
}

// One row of a matrix as T.
template <class T>
void read_row(const Matrix& m, index_t row, T* out, index_t out_step) {
  with_type(m.dtype, m.data, [&](auto* data) {
    copy_row(data + row * m.row_stride, m.col_stride, out, out_step, m.cols);
  });
}

// Filled rows of a bank slice, gathered into a dense tile.
template <class T>
struct BankTile {
  T* rows;           // [capacity][stride]
  index_t stride;
  index_t capacity;
  index_t count;     // filled rows in this tile
  index_t* source;   // [capacity] bank row of each

  // No empty slot lies between them.
  bool dense() const { return source[count - 1] - source[0] + 1 == count; }
};

// Choose the rows of the next tile from `next` .. `end`, leaving empty slots out; returns the row to
// go on from.
template <class T>
index_t gather_sources(const BankLse& op, index_t next, index_t end, BankTile<T>& tile) {
  const bool check = op.empty_slots && op.bank_ids;
  tile.count = 0;
  while (next < end && tile.count < tile.capacity) {
    if (!check || op.bank_ids[next] != -1) tile.source[tile.count++] = next;
    ++next;
  }
  return next;
}

// The bank lies as (D, K): a column of the tile is a run of memory.
SEDE_INLINE bool lies_in_columns(const Matrix& m) { return m.row_stride == 1 && m.col_stride != 1; }

// The chosen rows of any bank as dense rows. Rows beyond count (up to a multiple of kTileRows) and
// columns beyond D are zero.
template <class T>
void fill_rows(const Matrix& m, BankTile<T>& tile) {
  const index_t count = tile.count;
  if (lies_in_columns(m)) {
    constexpr index_t step = 16;  // rows at a time, so that each cache line is read once
    with_type(m.dtype, m.data, [&](auto* data) {
      for (index_t r = 0; r < count; r += step) {
        const index_t stop = r + step < count ? r + step : count;
        for (index_t d = 0; d < m.cols; ++d)
          for (index_t n = r; n < stop; ++n)
            tile.rows[n * tile.stride + d] = T(widen(data[tile.source[n] + d * m.col_stride]));
      }
    });
  } else {
    for (index_t r = 0; r < count; ++r)
      read_row<T>(m, tile.source[r], tile.rows + r * tile.stride, 1);
  }
  constexpr index_t W = Simd<T>::width;
  const index_t padded = (m.cols + W - 1) / W * W;
  if (padded > m.cols)
    for (index_t r = 0; r < count; ++r)
      for (index_t d = m.cols; d < padded; ++d) tile.rows[r * tile.stride + d] = T(0);
  for (index_t r = count; r % kTileRows; ++r)
    for (index_t d = 0; d < padded; ++d) tile.rows[r * tile.stride + d] = T(0);
}

// Choose the rows of the next tile and fill it with them.
template <class T>
index_t fill_tile(const BankLse& op, index_t next, index_t end, BankTile<T>& tile) {
  next = gather_sources(op, next, end, tile);
  fill_rows(op.bank, tile);
  return next;
}

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
