// Floating-point arithmetic (PTX ISA 9.7.3, 9.7.4). Rounding is to nearest even; .approx is exact
// to fp32 here, better than the hardware. Halves are computed in fp32 and rounded once.
#include "families.h"
#include "lanes.h"

namespace ptx {
namespace {

struct Add {
  template <class T>
  static T of(T a, T b) { return a + b; }
};
struct Sub {
  template <class T>
  static T of(T a, T b) { return a - b; }
};
struct Mul {
  template <class T>
  static T of(T a, T b) { return a * b; }
};
struct Div {
  template <class T>
  static T of(T a, T b) { return a / b; }
};
// -0 is below +0; a NaN loses against a number, or wins (.NaN).
struct Min {
  template <class T>
  static T of(T a, T b) {
    if (a != a) return b;
    if (b != b) return a;
    return a < b || (a == b && std::signbit(a)) ? a : b;
  }
};
struct Max {
  template <class T>
  static T of(T a, T b) {
    if (a != a) return b;
    if (b != b) return a;
    return a > b || (a == b && !std::signbit(a)) ? a : b;
  }
};
template <class F>
struct WithNan {
  template <class T>
  static T of(T a, T b) { return a != a || b != b ? T(NAN) : F::of(a, b); }
};
struct Fma {
  static float of(float a, float b, float c) { return fmaf(a, b, c); }
  static double of(double a, double b, double c) { return fma(a, b, c); }
};
struct Neg {
  template <class T>
  static T of(T a) { return -a; }
};
struct Abs {
  static float of(float a) { return std::fabs(a); }
  static double of(double a) { return std::fabs(a); }
};
struct Exp2 {
  static float of(float a) { return exp2f(a); }
};
struct Log2 {
  static float of(float a) { return log2f(a); }
};
struct Reciprocal {
  template <class T>
  static T of(T a) { return T(1) / a; }
};
struct Sqrt {
  template <class T>
  static T of(T a) { return std::sqrt(a); }
};
struct ReciprocalSqrt {
  template <class T>
  static T of(T a) { return T(1. / std::sqrt(double(a))); }
};
struct Sine {
  static float of(float a) { return sinf(a); }
};
struct Cosine {
  static float of(float a) { return cosf(a); }
};
struct Tanh {
  static float of(float a) { return tanhf(a); }
};

template <class F>
struct Flushing {  // .ftz
  static float of(float a) { return flushed(F::of(flushed(a))); }
  static float of(float a, float b) { return flushed(F::of(flushed(a), flushed(b))); }
  static float of(float a, float b, float c) {
    return flushed(F::of(flushed(a), flushed(b), flushed(c)));
  }
};

struct Bf16 {
  static float wide(u16 x) { return bf16_to_float(x); }
  static u16 narrow(float x) { return float_to_bf16(x); }
};
struct Fp16 {
  static float wide(u16 x) { return half_to_float(x); }
  static u16 narrow(float x) { return float_to_half(x); }
};
template <class F, class Format>
struct Half {
  template <class... T>
  static u16 of(T... x) { return Format::narrow(F::of(Format::wide(x)...)); }
};
template <class F, class Format>
struct Packed {
  template <class... T>
  static u32 of(T... x) {
    return Half<F, Format>::of(u16(x)...) | u32(Half<F, Format>::of(u16(x >> 16)...)) << 16;
  }
};

template <class F>
Handler binary_handler(Type t, bool ftz) {
  if (t.kind == 'h')
    return t.packed ? binary<u32, u32, u32, Packed<F, Fp16>> : binary<u16, u16, u16, Half<F, Fp16>>;
  if (t.kind == 'g')
    return t.packed ? binary<u32, u32, u32, Packed<F, Bf16>> : binary<u16, u16, u16, Half<F, Bf16>>;
  if (t.is('f', 8)) return binary<double, double, double, F>;
  return ftz ? binary<float, float, float, Flushing<F>> : binary<float, float, float, F>;
}

template <class F>
void binary_of(Decode& x, Type t) {
  x.has("rn");
  const bool ftz = x.has("ftz");
  operands(x, t, 2);
  x.in.run = binary_handler<F>(t, ftz);
}

template <class F>
void extremum(Decode& x, Type t) {
  const bool ftz = x.has("ftz"), nan = x.has("NaN");
  operands(x, t, 2);
  x.in.run = nan ? binary_handler<WithNan<F>>(t, ftz) : binary_handler<F>(t, ftz);
}

template <class F>
void unary_of(Decode& x, Type t) {
  const bool ftz = x.has("ftz");
  operands(x, t, 1);
  if (t.kind == 'h') {
    x.in.run = t.packed ? unary<u32, u32, Packed<F, Fp16>> : unary<u16, u16, Half<F, Fp16>>;
  } else if (t.kind == 'g') {
    x.in.run = t.packed ? unary<u32, u32, Packed<F, Bf16>> : unary<u16, u16, Half<F, Bf16>>;
  } else if (t.is('f', 4)) {
    x.in.run = ftz ? unary<float, float, Flushing<F>> : unary<float, float, F>;
  } else {
    fail("the type is not supported");
  }
}

template <class F>
void single_or_double(Decode& x) {
  const Type t = x.type();
  x.has("approx");
  x.has("rn");
  if (!t.is('f', 8)) return unary_of<F>(x, t);
  x.has("ftz");
  operands(x, t, 1);
  x.in.run = unary<double, double, F>;
}

template <class F>
void approximate(Decode& x) {
  const Type t = x.type();
  x.has("approx");
  unary_of<F>(x, t);
}

}  // namespace

void decode_add(Decode& x) {
  const Type t = x.type();
  t.integer() ? integer_add(x, t) : binary_of<Add>(x, t);
}
void decode_sub(Decode& x) {
  const Type t = x.type();
  t.integer() ? integer_sub(x, t) : binary_of<Sub>(x, t);
}
void decode_mul(Decode& x) {
  const Type t = x.type();
  t.integer() ? integer_mul(x, t) : binary_of<Mul>(x, t);
}
void decode_div(Decode& x) {
  const Type t = x.type();
  if (t.integer()) return integer_div(x, t);
  if (!t.floating()) fail("the type is not supported");
  x.has("full");
  x.has("approx");
  binary_of<Div>(x, t);
}
void decode_min(Decode& x) {
  const Type t = x.type();
  t.integer() ? integer_min(x, t) : extremum<Min>(x, t);
}
void decode_max(Decode& x) {
  const Type t = x.type();
  t.integer() ? integer_max(x, t) : extremum<Max>(x, t);
}
void decode_neg(Decode& x) {
  const Type t = x.type();
  if (t.integer()) return integer_neg(x, t);
  if (!t.is('f', 8)) return unary_of<Neg>(x, t);
  operands(x, t, 1);
  x.in.run = unary<double, double, Neg>;
}
void decode_abs(Decode& x) {
  const Type t = x.type();
  if (t.integer()) return integer_abs(x, t);
  if (!t.is('f', 8)) return unary_of<Abs>(x, t);
  operands(x, t, 1);
  x.in.run = unary<double, double, Abs>;
}

void decode_fma(Decode& x) {
  const Type t = x.type();
  x.has("rn");
  const bool ftz = x.has("ftz");
  operands(x, t, 3);
  if (t.kind == 'h')
    x.in.run = t.packed ? ternary<u32, u32, u32, u32, Packed<Fma, Fp16>>
                        : ternary<u16, u16, u16, u16, Half<Fma, Fp16>>;
  else if (t.kind == 'g')
    x.in.run = t.packed ? ternary<u32, u32, u32, u32, Packed<Fma, Bf16>>
                        : ternary<u16, u16, u16, u16, Half<Fma, Bf16>>;
  else if (t.is('f', 8))
    x.in.run = ternary<double, double, double, double, Fma>;
  else if (t.is('f', 4))
    x.in.run = ftz ? ternary<float, float, float, float, Flushing<Fma>>
                   : ternary<float, float, float, float, Fma>;
  else
    fail("the type is not supported");
}

void decode_ex2(Decode& x) { approximate<Exp2>(x); }
void decode_lg2(Decode& x) { approximate<Log2>(x); }
void decode_sin(Decode& x) { approximate<Sine>(x); }
void decode_cos(Decode& x) { approximate<Cosine>(x); }
void decode_tanh(Decode& x) { approximate<Tanh>(x); }
void decode_rcp(Decode& x) { single_or_double<Reciprocal>(x); }
void decode_sqrt(Decode& x) { single_or_double<Sqrt>(x); }
void decode_rsqrt(Decode& x) { single_or_double<ReciprocalSqrt>(x); }

}  // namespace ptx
