// Number formats: bit casts, half types as bits, tf32, flushing of subnormals.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps their number");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
inline u32 bits_of(float f) { return bit_cast<u32>(f); }
inline float float_of(u32 b) { return bit_cast<float>(b); }

// A subnormal becomes a zero of its sign (.ftz).
inline float flushed(float f) {
  const u32 b = bits_of(f);
  return (b & 0x7f800000u) == 0 ? float_of(b & 0x80000000u) : f;
}

// The tensor cores read 19 bits of a tf32 operand.
inline float tf32_operand(u32 b) { return float_of(b & 0xffffe000u); }

inline float bf16_to_float(u16 b) { return float_of(u32(b) << 16); }
inline u16 float_to_bf16(float f) {  // to nearest, ties to even; NaN is 0x7fff
  const u32 b = bits_of(f);
  if ((b & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return u16((b + 0x7fffu + (b >> 16 & 1)) >> 16);
}

inline float half_to_float(u16 h) {
  const u32 sign = u32(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // 2^112 is the difference of the exponents' biases; it makes subnormals normal.
  return float_of(bits_of(float_of(magnitude << 13) * 0x1p112f) | sign);
}
inline u16 float_to_half(float f) {  // to nearest, ties to even; NaN is 0x7fff
  u32 b = bits_of(f);
  const u16 sign = u16(b >> 16 & 0x8000u);
  b &= 0x7fffffffu;
  if (b > 0x7f800000u) return 0x7fff;
  if (b >= 0x477ff000u) return u16(sign | 0x7c00u);  // 65520 and more
  if (b < 0x38800000u)  // a subnormal: the last bit of 0.5f + x is worth 2^-24
    return u16(sign | (bits_of(float_of(b) + 0.5f) - 0x3f000000u));
  b += 0xc8000fffu + (b >> 13 & 1);
  return u16(sign | b >> 13);
}

// The low `bits` of v as a signed or unsigned number.
inline u64 extended(u64 v, u32 bits, bool is_signed) {
  if (bits == 64) return v;
  v &= (u64(1) << bits) - 1;
  if (is_signed && (v >> (bits - 1) & 1)) v |= ~u64(0) << bits;
  return v;
}

inline u32 first_lane(u32 mask) { return u32(__builtin_ctz(mask)); }
inline u32 lanes_in(u32 mask) { return u32(__builtin_popcount(mask)); }
inline u64 round_up(u64 n, u64 step) { return (n + step - 1) / step * step; }

}  // namespace ptx
