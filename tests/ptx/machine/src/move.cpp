// Moves (PTX ISA 9.7.9 mov), packing of vectors, special registers.
#include "families.h"
#include "lanes.h"

namespace ptx {
namespace {

struct Same {
  template <class T>
  static T of(T a) { return a; }
};

void move_predicate(Warp& w, const Instruction& in, u32 mask) {
  set_predicate(w, in.d, mask, w.predicate(in.a));
}

// width: bits of an element
void unpack(Warp& w, const Instruction& in, u32 mask) {
  const Slot* v = &w.block->kernel->pool[in.v[0].first];
  each_lane(mask, [&](u32 l) {
    const u64 whole = bits_at(w, in.a, l);
    for (u32 i = 0; i < in.v[0].count; i++)
      if (v[i].used()) set_bits(w, v[i], l, extended(whole >> in.width * i, in.width, false));
  });
}
void pack(Warp& w, const Instruction& in, u32 mask) {
  const Slot* v = &w.block->kernel->pool[in.v[0].first];
  each_lane(mask, [&](u32 l) {
    u64 whole = 0;
    for (u32 i = 0; i < in.v[0].count; i++)
      whole |= extended(bits_at(w, v[i], l), in.width, false) << in.width * i;
    set_bits(w, in.d, l, whole);
  });
}

Handler mover(u8 bytes) {
  switch (bytes) {
    case 0: return move_predicate;
    case 2: return unary<u16, u16, Same>;
    case 4: return unary<u32, u32, Same>;
    default: return unary<u64, u64, Same>;
  }
}

}  // namespace

void decode_mov(Decode& x) {
  const Type t = x.type();
  Instruction& in = x.in;
  const bool unpacks = x.operand(0).kind == Operand::VECTOR;
  if (!unpacks && x.operand(1).kind != Operand::VECTOR) {
    operands(x, t, 1);
    in.run = mover(t.bytes);
    in.copies_register = t.bytes == 4;
    return;
  }
  const u32 elements = u32(x.operand(unpacks ? 0 : 1).parts.size());
  const Type element{'b', u8(t.bytes / elements), false};
  if (element.bytes == 0) fail("the elements are smaller than a byte");
  const bool wide = element.bytes == 1;  // its register has 16 bits
  in.width = element.bytes * 8;
  if (unpacks) {
    in.v[0] = x.results(0, element, wide);
    in.a = x.source(1, t);
    in.run = unpack;
  } else {
    in.d = x.result(0, t);
    in.v[0] = x.sources(1, element, wide);
    in.run = pack;
  }
}

void decode_createpolicy(Decode& x) {  // a hint for the cache
  x.ignore({"fractional", "range", "cvt", "L2", "b64"});
  x.in.d = x.result(0, {'b', 8, false});
  x.in.a = x.constant(0, 8);
  x.in.run = unary<u64, u64, Same>;
}

}  // namespace ptx
