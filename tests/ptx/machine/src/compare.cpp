// Comparison and selection (PTX ISA 9.7.6, 9.7.7): setp, selp.
#include "families.h"
#include "lanes.h"

namespace ptx {
namespace {

// A comparison with a NaN is false, or true where the name ends in u.
struct Eq {
  template <class T>
  static bool of(T a, T b) { return a == b; }
};
struct Ne {
  template <class T>
  static bool of(T a, T b) { return a < b || a > b; }
};
struct Lt {
  template <class T>
  static bool of(T a, T b) { return a < b; }
};
struct Le {
  template <class T>
  static bool of(T a, T b) { return a <= b; }
};
struct Gt {
  template <class T>
  static bool of(T a, T b) { return a > b; }
};
struct Ge {
  template <class T>
  static bool of(T a, T b) { return a >= b; }
};
template <class F>
struct Not {
  template <class T>
  static bool of(T a, T b) { return !F::of(a, b); }
};
struct Numbers {
  template <class T>
  static bool of(T a, T b) { return a == a && b == b; }
};

constexpr u32 COMBINED_INVERTED = 1, FLUSHED = 2;
enum Combination : u32 { PLAIN, AND, OR, XOR };

void set_both(Warp& w, const Instruction& in, u32 mask, u32 result) {
  u32 opposite = ~result;
  if (in.mode != PLAIN) {
    const u32 c = w.predicate(in.c) ^ (in.flags & COMBINED_INVERTED ? ~0u : 0);
    const auto combined = [&](u32 p) {
      return in.mode == AND ? p & c : in.mode == OR ? p | c : p ^ c;
    };
    result = combined(result);
    opposite = combined(opposite);
  }
  set_predicate(w, in.d, mask, result);
  set_predicate(w, in.e, mask, opposite);
}

template <class T, class F>
void compare(Warp& w, const Instruction& in, u32 mask) {
  const T *a = w.at<T>(in.a), *b = w.at<T>(in.b);
  u8 holds[LANES];
  for (u32 l = 0; l < LANES; l++) holds[l] = F::of(a[l], b[l]);
  u32 result = 0;
  for (u32 l = 0; l < LANES; l++) result |= u32(holds[l]) << l;
  set_both(w, in, mask, result);
}

// Halves, and floats whose subnormals are flushed.
template <class F>
void compare_as_float(Warp& w, const Instruction& in, u32 mask) {
  u32 result = 0;
  const auto value = [&](Slot slot, u32 l) {
    const u64 bits = bits_at(w, slot, l);
    if (in.type == 'f') return flushed(float_of(u32(bits)));
    const float f = in.type == 'g' ? bf16_to_float(u16(bits)) : half_to_float(u16(bits));
    return in.flags & FLUSHED ? flushed(f) : f;
  };
  for (u32 l = 0; l < LANES; l++) result |= u32(F::of(value(in.a, l), value(in.b, l))) << l;
  set_both(w, in, mask, result);
}

template <class F>
Handler comparison(Type t, bool ftz) {
  if (t.kind == 'h' || t.kind == 'g' || (ftz && t.is('f', 4))) return compare_as_float<F>;
  if (t.floating()) return t.bytes == 4 ? compare<float, F> : compare<double, F>;
  const bool s = t.kind == 's';
  switch (t.bytes) {
    case 2: return s ? compare<s16, F> : compare<u16, F>;
    case 4: return s ? compare<s32, F> : compare<u32, F>;
    case 8: return s ? compare<s64, F> : compare<u64, F>;
    default: fail("the type is not supported");
  }
}

template <class T>
void select(Warp& w, const Instruction& in, u32 mask) {
  T* d = w.at<T>(in.d);
  const T *a = w.at<T>(in.a), *b = w.at<T>(in.b);
  const u32 p = w.predicate(in.c);
  each_lane(mask, [&](u32 l) { d[l] = p >> l & 1 ? a[l] : b[l]; });
}

Handler comparison_of(Decode& x, Type t, bool ftz) {
  switch (x.one_of({"eq", "ne", "lt", "le", "gt", "ge"})) {
    case 0: return comparison<Eq>(t, ftz);
    case 1: return comparison<Ne>(t, ftz);
    case 2: return comparison<Lt>(t, ftz);
    case 3: return comparison<Le>(t, ftz);
    case 4: return comparison<Gt>(t, ftz);
    case 5: return comparison<Ge>(t, ftz);
    default: break;
  }
  if (t.kind == 'u' || t.kind == 'b') {
    switch (x.one_of({"lo", "ls", "hi", "hs"})) {
      case 0: return comparison<Lt>(t, ftz);
      case 1: return comparison<Le>(t, ftz);
      case 2: return comparison<Gt>(t, ftz);
      case 3: return comparison<Ge>(t, ftz);
      default: break;
    }
  }
  if (t.integer() || t.kind == 'p') fail("the comparison is not supported");
  switch (x.one_of({"equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"})) {
    case 0: return comparison<Not<Ne>>(t, ftz);
    case 1: return comparison<Not<Eq>>(t, ftz);
    case 2: return comparison<Not<Ge>>(t, ftz);
    case 3: return comparison<Not<Gt>>(t, ftz);
    case 4: return comparison<Not<Le>>(t, ftz);
    case 5: return comparison<Not<Lt>>(t, ftz);
    case 6: return comparison<Numbers>(t, ftz);
    case 7: return comparison<Not<Numbers>>(t, ftz);
    default: fail("the comparison is not supported");
  }
}

}  // namespace

void decode_setp(Decode& x) {
  const Type t = x.type(), p{'p', 0, false};
  Instruction& in = x.in;
  const bool ftz = x.has("ftz");
  const Operand& to = x.operand(0);
  const bool pair = to.kind == Operand::PAIR;
  in.d = x.result(pair ? to.parts[0] : to, p);
  if (pair) in.e = x.result(to.parts[1], p);
  in.a = x.source(1, t);
  in.b = x.source(2, t);
  in.type = u32(t.kind);
  if (ftz) in.flags |= FLUSHED;
  in.mode = u32(x.one_of({"and", "or", "xor"}) + 1);
  if (in.mode != PLAIN) {
    in.c = x.source(3, p);
    if (x.operand(3).inverted) in.flags |= COMBINED_INVERTED;
  }
  in.run = comparison_of(x, t, ftz);
}

void decode_selp(Decode& x) {
  const Type t = x.type();
  operands(x, t, 2);
  x.in.c = x.source(3, {'p', 0, false});
  x.in.run = t.bytes == 2 ? select<u16> : t.bytes == 4 ? select<u32> : select<u64>;
}

}  // namespace ptx
