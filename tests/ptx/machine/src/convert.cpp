// Conversion between types (PTX ISA 9.7.9 cvt) and between address spaces (cvta).
#include "families.h"
#include "global.h"
#include "lanes.h"

namespace ptx {
namespace {

enum Rounding : u32 { NEAREST, ZERO, DOWN, UP };
enum Flag : u32 { FLUSH = 1, SATURATE = 2, TO_INTEGRAL = 4, AWAY = 8 };

double integral(double v, u32 rounding) {
  switch (rounding) {
    case ZERO: return std::trunc(v);
    case DOWN: return std::floor(v);
    case UP: return std::ceil(v);
    default: return std::rint(v);
  }
}

float to_float(double v, u32 rounding) {
  const float f = float(v);
  if (rounding == NEAREST || f != f || std::isinf(v)) return f;
  if (rounding == ZERO && std::fabs(double(f)) > std::fabs(v)) return std::nextafter(f, 0.f);
  if (rounding == DOWN && double(f) > v) return std::nextafter(f, -INFINITY);
  if (rounding == UP && double(f) < v) return std::nextafter(f, INFINITY);
  return f;
}

u64 narrowed(double v, Type t, u32 rounding) {  // as the bits of a floating type
  if (t.is('f', 8)) return bit_cast<u64>(v);
  if (t.is('f', 4)) return bits_of(to_float(v, rounding));
  if (t.kind == 'h') return float_to_half(float(v));
  return rounding == ZERO ? u64(bits_of(float(v)) >> 16) : float_to_bf16(float(v));
}

double widened(u64 bits, Type t, bool flush) {
  if (t.is('f', 8)) return bit_cast<double>(bits);
  if (t.is('f', 4)) return flush ? flushed(float_of(u32(bits))) : float_of(u32(bits));
  return t.kind == 'h' ? half_to_float(u16(bits)) : bf16_to_float(u16(bits));
}

// An integer out of range becomes the nearest one (.sat; always, from a floating type).
u64 clamped(double v, Type t) {
  if (v != v) return 0;
  const u32 bits = t.bytes * 8;
  if (t.kind == 's') {
    const double limit = std::ldexp(1., int(bits) - 1);
    if (v >= limit) return (u64(1) << (bits - 1)) - 1;
    return v < -limit ? u64(0) - (u64(1) << (bits - 1)) : u64(s64(v));
  }
  if (v >= std::ldexp(1., int(bits))) return bits == 64 ? ~u64(0) : (u64(1) << bits) - 1;
  return v <= 0 ? 0 : u64(v);
}

u64 saturated(u64 v, bool from_signed, Type t) {
  const u32 bits = t.bytes * 8;
  const bool negative = from_signed && s64(v) < 0;
  if (t.kind == 's') {
    const s64 most = s64((u64(1) << (bits - 1)) - 1);
    if (negative) return u64(std::max(s64(v), -most - 1));
    return v > u64(most) ? u64(most) : v;
  }
  if (negative) return 0;
  return bits == 64 ? v : std::min(v, (u64(1) << bits) - 1);
}

u32 code(Type t) { return u32(t.kind) << 8 | t.bytes; }
Type decoded(u32 code) { return {char(code >> 8), u8(code & 255), false}; }

// type: source, count: destination, mode: rounding.
void convert(Warp& w, const Instruction& in, u32 mask) {
  const Type from = decoded(in.type), to = decoded(in.count);
  each_lane(mask, [&](u32 l) {
    const u64 raw = bits_at(w, in.a, l);
    u64 out;
    if (from.integer()) {
      const u64 v = extended(raw, from.bytes * 8, from.kind == 's');
      if (to.integer()) {
        out = in.flags & SATURATE ? saturated(v, from.kind == 's', to) : v;
        out = extended(out, to.bytes * 8, to.kind == 's');
      } else if (to.is('f', 8)) {
        out = bit_cast<u64>(from.kind == 's' ? double(s64(v)) : double(v));
      } else {
        // Through double where that is exact, so that one rounding is made.
        const double d = from.kind == 's' ? double(s64(v)) : double(v);
        const float f = from.kind == 's' ? float(s64(v)) : float(v);
        out = narrowed(from.bytes < 8 ? d : double(f), to, in.mode);
      }
    } else {
      double v = widened(raw, from, in.flags & FLUSH);
      if (to.integer()) {
        out = extended(clamped(integral(v, in.mode), to), to.bytes * 8, to.kind == 's');
      } else {
        if (in.flags & TO_INTEGRAL) v = integral(v, in.mode);
        if (in.flags & SATURATE) v = v > 0 ? std::min(v, 1.) : 0;
        out = narrowed(v, to, in.flags & TO_INTEGRAL ? u32(NEAREST) : in.mode);
        if ((in.flags & FLUSH) && to.is('f', 4)) out = bits_of(flushed(float_of(u32(out))));
      }
    }
    set_bits(w, in.d, l, out);
  });
}

void to_tf32(Warp& w, const Instruction& in, u32 mask) {
  const u32* a = w.at<u32>(in.a);
  u32* d = w.at<u32>(in.d);
  each_lane(mask, [&](u32 l) {
    u32 b = a[l];
    const bool finite = (b & 0x7f800000u) != 0x7f800000u;
    if (finite && in.flags & AWAY) b += 0x1000u;
    if (finite && !(in.flags & AWAY)) b += 0xfffu + (b >> 13 & 1);
    d[l] = b & 0xffffe000u;
  });
}

struct ToBf16Pair {
  static u32 of(float high, float low) {
    return u32(float_to_bf16(high)) << 16 | float_to_bf16(low);
  }
};
struct ToHalfPair {
  static u32 of(float high, float low) {
    return u32(float_to_half(high)) << 16 | float_to_half(low);
  }
};
template <class D, class S>
struct Cast {
  static D of(S a) { return D(a); }
};
struct FromBf16 {
  static float of(u16 a) { return bf16_to_float(a); }
};
struct ToBf16 {
  static u16 of(float a) { return float_to_bf16(a); }
};
struct FromHalf {
  static float of(u16 a) { return half_to_float(a); }
};
struct ToHalf {
  static u16 of(float a) { return float_to_half(a); }
};

void decode_rounding(Decode& x, Instruction& in) {
  const int direction = x.one_of({"rn", "rz", "rm", "rp"});
  const int to_integral = x.one_of({"rni", "rzi", "rmi", "rpi"});
  in.mode = u32(std::max({direction, to_integral, 0}));
  if (to_integral >= 0) in.flags |= TO_INTEGRAL;
  if (x.has("ftz")) in.flags |= FLUSH;
  if (x.has("sat")) in.flags |= SATURATE;
}

// The frequent ones, where no lane needs the general way.
Handler short_cut(const Instruction& in, Type to, Type from) {
  if (in.flags || in.mode != NEAREST) return nullptr;
  const u8 d = in.d.bytes, a = in.a.bytes;
  if (d != to.bytes || a != from.bytes) return nullptr;
  if (to.is('u', 4) && from.is('u', 8)) return unary<u32, u64, Cast<u32, u64>>;
  if (to.is('u', 8) && from.is('u', 4)) return unary<u64, u32, Cast<u64, u32>>;
  if (to.is('s', 8) && from.is('s', 4)) return unary<s64, s32, Cast<s64, s32>>;
  if (to.is('u', 2) && from.is('u', 4)) return unary<u16, u32, Cast<u16, u32>>;
  if (to.is('u', 4) && from.is('u', 2)) return unary<u32, u16, Cast<u32, u16>>;
  if (to.is('f', 4) && from.is('s', 4)) return unary<float, s32, Cast<float, s32>>;
  if (to.is('f', 4) && from.is('g', 2)) return unary<float, u16, FromBf16>;
  if (to.is('f', 4) && from.is('h', 2)) return unary<float, u16, FromHalf>;
  if (to.is('g', 2) && from.is('f', 4)) return unary<u16, float, ToBf16>;
  if (to.is('h', 2) && from.is('f', 4)) return unary<u16, float, ToHalf>;
  return nullptr;
}

// cvta: an offset into a window that only some addresses need.
void shift_address(Warp& w, const Instruction& in, u32 mask) {
  const u64* a = w.at<u64>(in.a);
  u64* d = w.at<u64>(in.d);
  each_lane(mask, [&](u32 l) { d[l] = a[l] + u64(in.offset); });
}
void add_base(Warp& w, const Instruction& in, u32 mask) {  // local and parameters: b is the base
  const u64 *a = w.at<u64>(in.a), *b = w.at<u64>(in.b);
  u64* d = w.at<u64>(in.d);
  each_lane(mask, [&](u32 l) { d[l] = a[l] < OFFSETS ? a[l] + b[l] : a[l]; });
}

}  // namespace

void decode_cvt(Decode& x) {
  const Type from = x.type(), to = x.type(1), f32{'f', 4, false}, b32{'b', 4, false};
  Instruction& in = x.in;
  if (to.packed) {
    if (!from.is('f', 4) || !x.has("rn")) fail("only .rn from two .f32 is supported");
    in.d = x.result(0, b32);
    in.a = x.source(1, f32);
    in.b = x.source(2, f32);
    in.run = to.kind == 'g' ? binary<u32, float, float, ToBf16Pair>
                            : binary<u32, float, float, ToHalfPair>;
    return;
  }
  if (to.kind == 't') {
    if (x.has("rna")) in.flags |= AWAY;
    else if (!x.has("rn")) fail("only .rna and .rn are supported");
    in.d = x.result(0, b32);
    in.a = x.source(1, f32);
    in.run = to_tf32;
    return;
  }
  if (from.packed || from.kind == 't' || from.kind == 'p' || to.kind == 'p')
    fail("the types are not supported");
  decode_rounding(x, in);
  if (to.kind == 'h' && in.mode != NEAREST && !from.integer())
    fail("only rounding to nearest is supported");
  if (in.mode != NEAREST && from.integer() && from.bytes == 8)
    fail("only rounding to nearest is supported");
  in.d = x.result(0, to, true);
  in.a = x.source(1, from, true);
  in.type = code(from);
  in.count = code(to);
  const Handler fast = short_cut(in, to, from);
  in.run = fast ? fast : convert;
}

void decode_cvta(Decode& x) {
  Instruction& in = x.in;
  const Type t = x.type();
  if (t.bytes != 8) fail("only 64-bit addresses are supported");
  const bool away = x.has("to");  // from generic to the space
  in.space = x.space();
  in.d = x.result(0, t);
  in.a = x.source(1, t);
  in.run = shift_address;
  if (in.space == Space::SHARED) in.offset = away ? -s64(SHARED_WINDOW) : s64(SHARED_WINDOW);
  if (!away && (in.space == Space::LOCAL || in.space == Space::PARAM)) {
    const bool local = in.space == Space::LOCAL;
    in.b = x.symbol(local ? Kernel::Base::LOCAL : Kernel::Base::PARAM, 8);
    in.run = add_base;
  }
}

}  // namespace ptx
