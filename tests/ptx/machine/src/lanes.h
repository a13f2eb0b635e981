// A function of one element applied to the lanes of a mask, and the access to single lanes.
#pragma once
#include "decode.h"
#include "state.h"

namespace ptx {

template <class Body>
inline void each_lane(u32 mask, Body body) {
  if (mask == WHOLE_WARP) {
    for (u32 l = 0; l < LANES; l++) body(l);
    return;
  }
  for (u32 l = 0; l < LANES; l++)
    if (mask >> l & 1) body(l);
}

template <class D, class A, class F>
void unary(Warp& w, const Instruction& in, u32 mask) {
  D* d = w.at<D>(in.d);
  const A* a = w.at<A>(in.a);
  each_lane(mask, [&](u32 l) { d[l] = F::of(a[l]); });
}

template <class D, class A, class B, class F>
void binary(Warp& w, const Instruction& in, u32 mask) {
  D* d = w.at<D>(in.d);
  const A* a = w.at<A>(in.a);
  const B* b = w.at<B>(in.b);
  each_lane(mask, [&](u32 l) { d[l] = F::of(a[l], b[l]); });
}

template <class D, class A, class B, class C, class F>
void ternary(Warp& w, const Instruction& in, u32 mask) {
  D* d = w.at<D>(in.d);
  const A* a = w.at<A>(in.a);
  const B* b = w.at<B>(in.b);
  const C* c = w.at<C>(in.c);
  each_lane(mask, [&](u32 l) { d[l] = F::of(a[l], b[l], c[l]); });
}

// The handler of an integer type; b is taken as unsigned.
template <class F>
Handler integer_binary(Type t) {
  const bool is_signed = t.kind == 's';
  switch (t.bytes) {
    case 2: return is_signed ? binary<s16, s16, s16, F> : binary<u16, u16, u16, F>;
    case 4: return is_signed ? binary<s32, s32, s32, F> : binary<u32, u32, u32, F>;
    case 8: return is_signed ? binary<s64, s64, s64, F> : binary<u64, u64, u64, F>;
    default: fail("the type is not supported");
  }
}

template <class F>
Handler integer_unary(Type t) {
  const bool is_signed = t.kind == 's';
  switch (t.bytes) {
    case 2: return is_signed ? unary<s16, s16, F> : unary<u16, u16, F>;
    case 4: return is_signed ? unary<s32, s32, F> : unary<u32, u32, F>;
    case 8: return is_signed ? unary<s64, s64, F> : unary<u64, u64, F>;
    default: fail("the type is not supported");
  }
}

// d, a and b of one type.
inline void operands(Decode& x, Type t, u32 sources) {
  x.in.d = x.result(0, t);
  x.in.a = x.source(1, t);
  if (sources > 1) x.in.b = x.source(2, t);
  if (sources > 2) x.in.c = x.source(3, t);
}

inline u64 bits_at(Warp& w, Slot slot, u32 lane) {
  switch (slot.bytes) {
    case 8: return w.at<u64>(slot)[lane];
    case 4: return w.at<u32>(slot)[lane];
    default: return w.at<u16>(slot)[lane];
  }
}

inline void set_bits(Warp& w, Slot slot, u32 lane, u64 value) {
  switch (slot.bytes) {
    case 8: w.at<u64>(slot)[lane] = value; break;
    case 4: w.at<u32>(slot)[lane] = u32(value); break;
    default: w.at<u16>(slot)[lane] = u16(value);
  }
}

inline void set_predicate(Warp& w, Slot slot, u32 mask, u32 values) {
  if (!slot.used()) return;
  u32& p = w.predicate(slot);
  p = (p & ~mask) | (values & mask);
}

// An address: a register of 32 or 64 bits, or none, and an offset.
inline u64 address_at(Warp& w, Slot base, s64 offset, u32 lane) {
  return (base.used() ? bits_at(w, base, lane) : 0) + u64(offset);
}

// A shared address is 32 bits wide, from whatever register it comes.
inline u32 shared_address(Warp& w, Slot base, s64 offset, u32 lane) {
  return u32(address_at(w, base, offset, lane));
}

// An instruction of the whole warp (.sync.aligned): anything else is reported.
bool whole_warp(Warp& w, const Instruction& in, u32 mask);

}  // namespace ptx
