// Logic and shifts (PTX ISA 9.7.8), permutation of bytes (9.7.9 prmt).
#include "families.h"
#include "lanes.h"

namespace ptx {
namespace {

struct And {
  template <class T>
  static T of(T a, T b) { return T(a & b); }
};
struct Or {
  template <class T>
  static T of(T a, T b) { return T(a | b); }
};
struct Xor {
  template <class T>
  static T of(T a, T b) { return T(a ^ b); }
};
struct Not {
  template <class T>
  static T of(T a) { return T(~a); }
};
// Distances beyond the width count as the width.
struct ShiftLeft {
  template <class T>
  static T of(T a, u32 b) { return b >= sizeof(T) * 8 ? T(0) : T(u64(a) << b); }
};
struct ShiftRight {
  template <class T>
  static T of(T a, u32 b) {
    if (b >= sizeof(T) * 8) return T(-1) < T(0) && a < 0 ? T(-1) : T(0);
    return T(a >> b);
  }
};
// A funnel: b:a as 64 bits; the left one keeps the upper half, the right one the lower.
template <bool LEFT, bool WRAP>
struct Funnel {
  static u32 of(u32 a, u32 b, u32 c) {
    c = WRAP ? c & 31 : std::min(c, 32u);
    const u64 both = u64(b) << 32 | a;
    return LEFT ? u32(both >> (32 - c)) : u32(both >> c);
  }
};
// Four bytes chosen from b:a; bit 3 of a choice repeats the sign of the byte.
struct Permute {
  static u32 of(u32 a, u32 b, u32 c) {
    const u64 both = u64(b) << 32 | a;
    u32 r = 0;
    for (int i = 0; i < 4; i++) {
      const u32 choice = c >> 4 * i & 15;
      u32 byte = u32(both >> 8 * (choice & 7)) & 255;
      if (choice & 8) byte = byte & 128 ? 255 : 0;
      r |= byte << 8 * i;
    }
    return r;
  }
};

void logic_table(Warp& w, const Instruction& in, u32 mask) {
  const u32 *a = w.at<u32>(in.a), *b = w.at<u32>(in.b), *c = w.at<u32>(in.c);
  u32* d = w.at<u32>(in.d);
  each_lane(mask, [&](u32 l) {
    u32 r = 0;
    for (u32 i = 0; i < 8; i++)
      if (in.mode >> i & 1)
        r |= (i & 4 ? a[l] : ~a[l]) & (i & 2 ? b[l] : ~b[l]) & (i & 1 ? c[l] : ~c[l]);
    d[l] = r;
  });
}

template <class F>
void predicates(Warp& w, const Instruction& in, u32 mask) {
  set_predicate(w, in.d, mask, F::of(w.predicate(in.a), w.predicate(in.b)));
}

void predicate_not(Warp& w, const Instruction& in, u32 mask) {
  set_predicate(w, in.d, mask, ~w.predicate(in.a));
}

template <class F>
void binary_of(Decode& x) {
  const Type t = x.type();
  operands(x, t, 2);
  x.in.run = t.kind == 'p' ? predicates<F> : integer_binary<F>(t);
}

void shift_operands(Decode& x, Type t) {
  x.in.d = x.result(0, t);
  x.in.a = x.source(1, t);
  x.in.b = x.source(2, {'u', 4, false});
}

}  // namespace

void decode_and(Decode& x) { binary_of<And>(x); }
void decode_or(Decode& x) { binary_of<Or>(x); }
void decode_xor(Decode& x) { binary_of<Xor>(x); }

void decode_not(Decode& x) {
  const Type t = x.type();
  operands(x, t, 1);
  x.in.run = t.kind == 'p' ? predicate_not : integer_unary<Not>(t);
}

void decode_shl(Decode& x) {
  const Type t = x.type();
  shift_operands(x, t);
  x.in.run = t.bytes == 2   ? binary<u16, u16, u32, ShiftLeft>
             : t.bytes == 4 ? binary<u32, u32, u32, ShiftLeft>
                            : binary<u64, u64, u32, ShiftLeft>;
}

void decode_shr(Decode& x) {
  const Type t = x.type();
  shift_operands(x, t);
  if (t.kind == 's')
    x.in.run = t.bytes == 2   ? binary<s16, s16, u32, ShiftRight>
               : t.bytes == 4 ? binary<s32, s32, u32, ShiftRight>
                              : binary<s64, s64, u32, ShiftRight>;
  else
    x.in.run = t.bytes == 2   ? binary<u16, u16, u32, ShiftRight>
               : t.bytes == 4 ? binary<u32, u32, u32, ShiftRight>
                              : binary<u64, u64, u32, ShiftRight>;
}

void decode_shf(Decode& x) {
  const Type t = x.type();
  const bool left = x.has("l"), wrap = x.has("wrap");
  if (t.bytes != 4 || (!left && !x.has("r")) || (!wrap && !x.has("clamp")))
    fail(".l or .r, .wrap or .clamp and .b32 are expected");
  operands(x, t, 3);
  if (left)
    x.in.run = wrap ? ternary<u32, u32, u32, u32, Funnel<true, true>>
                    : ternary<u32, u32, u32, u32, Funnel<true, false>>;
  else
    x.in.run = wrap ? ternary<u32, u32, u32, u32, Funnel<false, true>>
                    : ternary<u32, u32, u32, u32, Funnel<false, false>>;
}

void decode_lop3(Decode& x) {
  const Type t = x.type();
  if (t.bytes != 4) fail("the type is not supported");
  operands(x, t, 3);
  x.in.mode = u32(x.number(4));
  x.in.run = logic_table;
}

void decode_prmt(Decode& x) {
  operands(x, x.type(), 3);
  x.in.run = ternary<u32, u32, u32, u32, Permute>;
}

}  // namespace ptx
