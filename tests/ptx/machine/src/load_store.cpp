// Loads and stores (PTX ISA 9.7.9 ld, ld.global.nc, st) and atomic operations (9.7.13 atom, red).
#include "families.h"
#include "global.h"
#include "lanes.h"
#include "shared.h"

namespace ptx {
namespace {

constexpr u32 SIGN = 1;
constexpr u32 MOST_BYTES = 32;

const Slot* elements(const Warp& w, const Instruction& in) {
  return &w.block->kernel->pool[in.v[0].first];
}

// width: bytes of an element
void load_lanes(Warp& w, const Instruction& in, u32 mask) {
  const Slot* v = elements(w, in);
  const u32 bytes = in.width * in.v[0].count;
  u8 buffer[MOST_BYTES];
  each_lane(mask, [&](u32 l) {
    u64 address = address_at(w, in.a, in.offset, l);
    if (in.space == Space::SHARED) address = u32(address);
    if (in.space == Space::PARAM && address < OFFSETS)
      address += reinterpret_cast<u64>(w.block->parameters);
    load(w, in, l, address, bytes, buffer, in.space);
    for (u32 i = 0; i < in.v[0].count; i++) {
      if (!v[i].used()) continue;
      u64 value = 0;
      memcpy(&value, buffer + in.width * i, in.width);
      set_bits(w, v[i], l, extended(value, in.width * 8, in.flags & SIGN));
    }
  });
}

void store_lanes(Warp& w, const Instruction& in, u32 mask) {
  const Slot* v = elements(w, in);
  const u32 bytes = in.width * in.v[0].count;
  u8 buffer[MOST_BYTES];
  each_lane(mask, [&](u32 l) {
    u64 address = address_at(w, in.a, in.offset, l);
    if (in.space == Space::SHARED) address = u32(address);
    for (u32 i = 0; i < in.v[0].count; i++) {
      const u64 value = bits_at(w, v[i], l);
      memcpy(buffer + in.width * i, &value, in.width);
    }
    store(w, in, l, address, bytes, buffer, in.space);
  });
}

void load_parameter(Warp& w, const Instruction& in, u32 mask) {
  const Slot* v = elements(w, in);
  for (u32 i = 0; i < in.v[0].count; i++) {
    u64 value = 0;
    memcpy(&value, w.block->parameters + in.offset + i * in.width, in.width);
    value = extended(value, in.width * 8, in.flags & SIGN);
    each_lane(mask, [&](u32 l) { set_bits(w, v[i], l, value); });
  }
}

enum Operation : u32 { ADD, MIN, MAX, EXCHANGE, CAS, AND, OR, XOR, INC, DEC };

u64 combined_integer(const Instruction& in, u64 old, u64 b, u64 c) {
  const bool is_signed = in.type == 's';
  const u64 x = extended(old, in.width * 8, is_signed), y = extended(b, in.width * 8, is_signed);
  const bool less = is_signed ? s64(x) < s64(y) : x < y;
  switch (in.mode) {
    case ADD: return x + y;
    case MIN: return less ? x : y;
    case MAX: return less ? y : x;
    case CAS: return x == y ? c : x;
    case AND: return x & y;
    case OR: return x | y;
    case XOR: return x ^ y;
    case INC: return x >= y ? 0 : x + 1;
    case DEC: return x == 0 || x > y ? y : x - 1;
    default: return y;
  }
}

template <class T>
T combined_float(const Instruction& in, T old, T b) {
  return in.mode == ADD ? old + b : b;
}

u64 combined(const Instruction& in, u64 old, u64 b, u64 c) {
  if (in.type != 'f') return combined_integer(in, old, b, c);
  if (in.width == 8)
    return bit_cast<u64>(combined_float(in, bit_cast<double>(old), bit_cast<double>(b)));
  return bits_of(combined_float(in, float_of(u32(old)), float_of(u32(b))));
}

u8* atomic_target(Warp& w, const Instruction& in, u32 lane) {
  const u64 address = address_at(w, in.a, in.offset, lane);
  if (in.space == Space::SHARED) return shared_atomic(w, in, lane, u32(address), in.width);
  if (in.space == Space::GENERIC && is_shared(address))
    return shared_atomic(w, in, lane, u32(address - SHARED_WINDOW), in.width);
  return global_atomic(w, in, lane, address, in.width);
}

void atomic_lanes(Warp& w, const Instruction& in, u32 mask) {
  const std::lock_guard<std::mutex> lock(w.block->regions->atomics);
  each_lane(mask, [&](u32 l) {
    u8* at = atomic_target(w, in, l);
    if (!at) return;
    u64 old = 0;
    memcpy(&old, at, in.width);
    const u64 c = in.c.used() ? bits_at(w, in.c, l) : 0;
    const u64 value = combined(in, old, bits_at(w, in.b, l), c);
    memcpy(at, &value, in.width);
    if (in.d.used()) set_bits(w, in.d, l, old);
  });
}

void memory_modifiers(Decode& x) {
  x.has("weak");
  x.has("nc");
  x.ignore({"L1::", "L2::", "cache_hint"});
  for (const char* operator_ : {"ca", "cg", "cs", "lu", "cv", "wb", "wt"}) x.has(operator_);
  for (const char* word : {"volatile", "relaxed", "acquire", "release", "acq_rel", "mmio"})
    if (x.has(word)) x.in.flags |= ORDERED;
  for (const char* scope : {"cta", "cluster", "gpu", "sys"}) x.has(scope);
}

u32 vector_length(Decode& x) { return x.has("v8") ? 8 : x.has("v4") ? 4 : x.has("v2") ? 2 : 1; }

void check_vector(Decode& x, u32 length) {
  if (x.in.v[0].count != length || x.in.width * length > MOST_BYTES)
    fail("the vector does not fit the type");
}

}  // namespace

void decode_ld(Decode& x) {
  Instruction& in = x.in;
  const Type t = x.type();
  if (t.kind == 'p' || t.bytes > 8) fail("the type is not supported");
  in.space = x.space();
  memory_modifiers(x);
  const u32 length = vector_length(x);
  in.width = t.bytes;
  if (t.kind == 's') in.flags |= SIGN;
  in.v[0] = x.results(0, t, true);
  check_vector(x, length);
  const Operand& from = x.operand(1);
  if (in.space == Space::PARAM && from.parts.at(0).text == "<param>") {
    in.offset = from.offset + from.parts[0].offset;
    in.run = load_parameter;
    return;
  }
  x.address(1, in.a, in.offset);
  in.run = load_lanes;
}

void decode_st(Decode& x) {
  Instruction& in = x.in;
  const Type t = x.type();
  if (t.kind == 'p' || t.bytes > 8) fail("the type is not supported");
  if (x.has("async") || x.has("bulk")) fail("only plain stores are supported");
  in.space = x.space();
  memory_modifiers(x);
  const u32 length = vector_length(x);
  in.width = t.bytes;
  in.v[0] = x.sources(1, t, true);
  check_vector(x, length);
  x.address(0, in.a, in.offset);
  in.run = store_lanes;
}

void decode_atom(Decode& x) {
  Instruction& in = x.in;
  const Type t = x.type();
  const u32 first = x.parts[0] == "atom" ? 1 : 0;
  if (t.packed || t.kind == 'h' || t.kind == 'g') fail("the type is not supported");
  in.space = x.space();
  memory_modifiers(x);
  in.flags |= ORDERED;
  x.has("noftz");
  const int operation =
      x.one_of({"add", "min", "max", "exch", "cas", "and", "or", "xor", "inc", "dec"});
  if (operation < 0 || (t.floating() && operation != ADD)) fail("the operation is not supported");
  in.mode = u32(operation);
  in.type = u32(t.kind);
  in.width = t.bytes;
  if (first) in.d = x.result(0, t);
  x.address(first, in.a, in.offset);
  in.b = x.source(first + 1, t);
  if (in.mode == CAS) in.c = x.source(first + 2, t);
  in.run = atomic_lanes;
}

}  // namespace ptx
