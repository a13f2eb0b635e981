// A candidate of the top-k as one unsigned number: a larger one is more similar or, of equals, has
// the lower row. No candidate is NaN. Used by the kernels and by their driver: see simd.h for why all
// of it is inlined and nothing of it has a name outside its file.
#pragma once

#include <cstdint>

namespace sede {
namespace {

#define SEDE_ORDERED inline __attribute__((always_inline))

template <class T>
struct Ordered;

template <>
struct Ordered<float> {
  using Key = std::uint64_t;
  using Value = std::uint32_t;

  static SEDE_ORDERED Value order(float x) {
    Value bits;
    x += 0.0f;  // -0 becomes 0
    __builtin_memcpy(&bits, &x, 4);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
  }
  static SEDE_ORDERED float value(Value order) {
    const Value bits = order >> 31 ? order & 0x7fffffffu : ~order;
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
  }
  static SEDE_ORDERED Key key(float x, std::int64_t row) { return Key(order(x)) << 32 | ~Value(row); }
  static SEDE_ORDERED Value head(Key key) { return Value(key >> 32); }
  static SEDE_ORDERED std::int64_t row(Key key) { return std::int64_t(~Value(key)); }
};

template <>
struct Ordered<double> {
  using Key = unsigned __int128;
  using Value = std::uint64_t;

  static SEDE_ORDERED Value order(double x) {
    Value bits;
    x += 0.0;
    __builtin_memcpy(&bits, &x, 8);
    return bits >> 63 ? ~bits : bits | Value(1) << 63;
  }
  static SEDE_ORDERED double value(Value order) {
    const Value bits = order >> 63 ? order & ~(Value(1) << 63) : ~order;
    double x;
    __builtin_memcpy(&x, &bits, 8);
    return x;
  }
  static SEDE_ORDERED Key key(double x, std::int64_t row) { return Key(order(x)) << 64 | ~Value(row); }
  static SEDE_ORDERED Value head(Key key) { return Value(key >> 64); }
  static SEDE_ORDERED std::int64_t row(Key key) { return std::int64_t(~Value(key)); }
};

}  // namespace
}  // namespace sede
