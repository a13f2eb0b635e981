// Integer arithmetic (PTX ISA 9.7.1). Sums and products wrap around.
#include "families.h"
#include "lanes.h"

namespace ptx {
namespace {

struct Add {
  template <class T>
  static T of(T a, T b) { return T(u64(a) + u64(b)); }
};
struct Sub {
  template <class T>
  static T of(T a, T b) { return T(u64(a) - u64(b)); }
};
struct MulLow {
  template <class T>
  static T of(T a, T b) { return T(u64(a) * u64(b)); }
};
struct MulHigh {
  template <class T>
  static T of(T a, T b) {
    constexpr bool is_signed = T(-1) < T(0);
    using Narrow = std::conditional_t<is_signed, s64, u64>;
    using Long = std::conditional_t<is_signed, __int128, unsigned __int128>;
    using Wide = std::conditional_t<sizeof(T) == 8, Long, Narrow>;
    return T((Wide(a) * Wide(b)) >> (8 * sizeof(T)));
  }
};
struct MulWide {
  static s32 of(s16 a, s16 b) { return s32(a) * b; }
  static u32 of(u16 a, u16 b) { return u32(a) * b; }
  static s64 of(s32 a, s32 b) { return s64(a) * b; }
  static u64 of(u32 a, u32 b) { return u64(a) * b; }
};
struct MadLow {
  template <class T>
  static T of(T a, T b, T c) { return T(u64(a) * u64(b) + u64(c)); }
};
struct MadWide {
  template <class T, class Wide>
  static Wide of(T a, T b, Wide c) { return Wide(u64(MulWide::of(a, b)) + u64(c)); }
};
struct Min {
  template <class T>
  static T of(T a, T b) { return a < b ? a : b; }
};
struct Max {
  template <class T>
  static T of(T a, T b) { return a > b ? a : b; }
};
// .relu: 0 for what is below it.
template <class F>
struct NotNegative {
  static s32 of(s32 a, s32 b) { return Max::of(F::of(a, b), 0); }
};
// The ISA leaves division by zero open; the hardware gives all ones, and a for the remainder.
struct Div {
  template <class T>
  static T of(T a, T b) {
    if (b == 0) return T(~T(0));
    if (T(-1) < T(0) && b == T(-1)) return T(0 - u64(a));
    return T(a / b);
  }
};
struct Rem {
  template <class T>
  static T of(T a, T b) {
    if (b == 0) return a;
    if (T(-1) < T(0) && b == T(-1)) return 0;
    return T(a % b);
  }
};
struct Neg {
  template <class T>
  static T of(T a) { return T(0 - u64(a)); }
};
struct Abs {
  template <class T>
  static T of(T a) { return a < 0 ? T(0 - u64(a)) : a; }
};
struct PopCount {
  template <class T>
  static u32 of(T a) { return u32(__builtin_popcountll(a)); }
};
struct LeadingZeros {
  static u32 of(u32 a) { return a ? u32(__builtin_clz(a)) : 32; }
  static u32 of(u64 a) { return a ? u32(__builtin_clzll(a)) : 64; }
};
struct Reverse {
  static u32 of(u32 a) {
    u32 r = 0;
    for (int i = 0; i < 32; i++) r |= (a >> i & 1) << (31 - i);
    return r;
  }
};
// A field of c bits from bit b; beyond the end: zeros, or copies of the sign.
struct ExtractUnsigned {
  static u32 of(u32 a, u32 b, u32 c) {
    b &= 255;
    c &= 255;
    if (c == 0 || b >= 32) return 0;
    return c >= 32 ? a >> b : (a >> b) & ((1u << c) - 1);
  }
};
struct ExtractSigned {
  static s32 of(s32 a, u32 b, u32 c) {
    b &= 255;
    c &= 255;
    if (c == 0) return 0;
    const s64 shifted = b >= 32 ? (a < 0 ? -1 : 0) : s64(a) >> b;
    return c >= 32 ? s32(shifted) : s32(extended(u64(shifted), c, true));
  }
};
// Four products of bytes and a sum.
template <bool A_SIGNED, bool B_SIGNED>
struct Dot4 {
  static u32 of(u32 a, u32 b, u32 c) {
    for (int i = 0; i < 4; i++)
      c += u32(extended(a >> 8 * i, 8, A_SIGNED)) * u32(extended(b >> 8 * i, 8, B_SIGNED));
    return c;
  }
};

void insert_field(Warp& w, const Instruction& in, u32 mask) {
  const u32 *a = w.at<u32>(in.a), *b = w.at<u32>(in.b), *c = w.at<u32>(in.c), *e = w.at<u32>(in.e);
  u32* d = w.at<u32>(in.d);
  each_lane(mask, [&](u32 l) {
    const u32 at = c[l] & 255, bits = e[l] & 255;
    if (bits == 0 || at >= 32) {
      d[l] = b[l];
      return;
    }
    const u32 field = (bits >= 32 ? ~0u : (1u << bits) - 1) << at;
    d[l] = (b[l] & ~field) | (a[l] << at & field);
  });
}

bool narrow(Type t) { return t.integer() && (t.bytes == 2 || t.bytes == 4); }

void wide_product(Decode& x, Type t, bool adds) {
  if (!narrow(t)) fail("the type is not supported");
  const Type wide{t.kind, u8(t.bytes * 2), false};
  x.in.d = x.result(0, wide);
  x.in.a = x.source(1, t);
  x.in.b = x.source(2, t);
  const bool s = t.kind == 's', half = t.bytes == 2;
  if (!adds) {
    x.in.run = half ? (s ? binary<s32, s16, s16, MulWide> : binary<u32, u16, u16, MulWide>)
                    : (s ? binary<s64, s32, s32, MulWide> : binary<u64, u32, u32, MulWide>);
    return;
  }
  x.in.c = x.source(3, wide);
  if (half)
    x.in.run = s ? ternary<s32, s16, s16, s32, MadWide> : ternary<u32, u16, u16, u32, MadWide>;
  else
    x.in.run = s ? ternary<s64, s32, s32, s64, MadWide> : ternary<u64, u32, u32, u64, MadWide>;
}

template <class F>
void binary_of(Decode& x, Type t) {
  operands(x, t, 2);
  x.in.run = integer_binary<F>(t);
}

template <class F>
void extremum_of(Decode& x, Type t) {
  if (!x.has("relu")) return binary_of<F>(x, t);
  if (!t.is('s', 4)) fail(".relu is supported for .s32 only");
  operands(x, t, 2);
  x.in.run = binary<s32, s32, s32, NotNegative<F>>;
}

}  // namespace

void integer_add(Decode& x, Type t) { binary_of<Add>(x, t); }
void integer_sub(Decode& x, Type t) { binary_of<Sub>(x, t); }
void integer_div(Decode& x, Type t) { binary_of<Div>(x, t); }
void integer_min(Decode& x, Type t) { extremum_of<Min>(x, t); }
void integer_max(Decode& x, Type t) { extremum_of<Max>(x, t); }
void integer_mul(Decode& x, Type t) {
  if (x.has("wide")) return wide_product(x, t, false);
  if (x.has("hi")) return binary_of<MulHigh>(x, t);
  if (!x.has("lo")) fail(".lo, .hi or .wide is missing");
  binary_of<MulLow>(x, t);
}
void integer_neg(Decode& x, Type t) {
  operands(x, t, 1);
  x.in.run = integer_unary<Neg>(t);
}
void integer_abs(Decode& x, Type t) {
  operands(x, t, 1);
  x.in.run = integer_unary<Abs>(t);
}

void decode_mad(Decode& x) {
  const Type t = x.type();
  if (!t.integer()) fail("the type is not supported");
  if (x.has("wide")) return wide_product(x, t, true);
  if (!x.has("lo")) fail("only .lo and .wide are supported");
  operands(x, t, 3);
  x.in.run = t.bytes == 2   ? ternary<u16, u16, u16, u16, MadLow>
             : t.bytes == 4 ? ternary<u32, u32, u32, u32, MadLow>
                            : ternary<u64, u64, u64, u64, MadLow>;
}

void decode_rem(Decode& x) { binary_of<Rem>(x, x.type()); }

void decode_count_bits(Decode& x) {
  const Type t = x.type();
  x.in.d = x.result(0, {'u', 4, false});
  x.in.a = x.source(1, t);
  const bool wide = t.bytes == 8;
  if (x.parts[0] == "popc") x.in.run = wide ? unary<u32, u64, PopCount> : unary<u32, u32, PopCount>;
  else x.in.run = wide ? unary<u32, u64, LeadingZeros> : unary<u32, u32, LeadingZeros>;
}

void decode_brev(Decode& x) {
  const Type t = x.type();
  if (t.bytes != 4) fail("the type is not supported");
  operands(x, t, 1);
  x.in.run = unary<u32, u32, Reverse>;
}

void decode_bfe(Decode& x) {
  const Type t = x.type(), u{'u', 4, false};
  if (t.bytes != 4) fail("the type is not supported");
  x.in.d = x.result(0, t);
  x.in.a = x.source(1, t);
  x.in.b = x.source(2, u);
  x.in.c = x.source(3, u);
  if (t.kind == 's') x.in.run = ternary<s32, s32, u32, u32, ExtractSigned>;
  else x.in.run = ternary<u32, u32, u32, u32, ExtractUnsigned>;
}

void decode_bfi(Decode& x) {
  const Type t = x.type();
  if (t.bytes != 4) fail("the type is not supported");
  operands(x, t, 3);
  x.in.e = x.source(4, {'u', 4, false});
  x.in.run = insert_field;
}

void decode_dp4a(Decode& x) {
  const Type b = x.type(), a = x.type(1);
  if (a.bytes != 4 || b.bytes != 4) fail("the type is not supported");
  operands(x, a, 3);
  using Pick = Handler;
  const bool as = a.kind == 's', bs = b.kind == 's';
  const Pick both = as ? ternary<u32, u32, u32, u32, Dot4<true, true>>
                       : ternary<u32, u32, u32, u32, Dot4<false, false>>;
  const Pick mixed = as ? ternary<u32, u32, u32, u32, Dot4<true, false>>
                        : ternary<u32, u32, u32, u32, Dot4<false, true>>;
  x.in.run = as == bs ? both : mixed;
}

}  // namespace ptx
