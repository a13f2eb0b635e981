// tensormap.replace and tensormap.cp_fenceproxy (PTX ISA 9.7.9.28, 9.7.13.16), and the checks of a
// map that the driver makes at its encoding.
#include "tensor_map.h"

#include "families.h"
#include "global.h"
#include "lanes.h"

namespace ptx {
namespace {

void check_layout(Warp& w, const Instruction& in, TensorMap& t) {
  const auto wrong = [&](const std::string& what) {
    report(w, in, Kind::TENSOR_MAP, what);
    t.valid = false;
  };
  if (t.rank < 1 || t.rank > 5) return wrong(format("rank %u", t.rank));
  if (t.base % 16) wrong("the tensor does not start on 16 bytes");
  for (u32 i = 1; i < t.rank; i++)
    if (t.stride[i] % 16) wrong(format("stride %u is no multiple of 16 bytes", i));
  for (u32 i = 0; i < t.rank; i++)
    if (t.box[i] == 0 || t.box[i] > 256) wrong(format("box dimension %u is %u", i, t.box[i]));
  if (t.row_bytes() % 16) wrong(format("a row of the box has %u bytes", t.row_bytes()));
  if (t.swizzle > 3) wrong(format("swizzle mode %u", t.swizzle));
  else if (t.swizzle && t.row_bytes() > 16u << t.swizzle)
    wrong(format("a row of %u bytes in a swizzle of %u", t.row_bytes(), 16u << t.swizzle));
}

}  // namespace

TensorMap read_map(Warp& w, const Instruction& in, u32 lane, u64 address) {
  TensorMap t;
  if (address % 64) {
    report(w, in, Kind::MISALIGNED, "the tensor map is not on 64 bytes");
    return t;
  }
  const u8* from = global_row(w, in, lane, address, MAP_BYTES, false);
  if (!from) return t;
  RawMap raw;
  memcpy(&raw, from, sizeof raw);
  if (raw.magic != MAP_MAGIC) {
    report(w, in, Kind::TENSOR_MAP, "this is no tensor map");
    return t;
  }
  t.base = raw.base;
  t.rank = raw.rank;
  t.element = raw.element;
  t.swizzle = raw.swizzle;
  t.fill = raw.fill;
  t.stride[0] = raw.element;
  for (u32 i = 0; i < 5; i++) {
    t.size[i] = i < raw.rank ? raw.size[i] : 1;
    t.box[i] = i < raw.rank ? raw.box[i] : 1;
    if (i) t.stride[i] = raw.stride[i - 1];
  }
  t.valid = true;
  check_layout(w, in, t);
  return t;
}

namespace {

enum Field : u32 {
  GLOBAL_ADDRESS, RANK, BOX_DIM, GLOBAL_DIM, GLOBAL_STRIDE, ELEMENT_STRIDE, ELEMTYPE,
  INTERLEAVE_LAYOUT, SWIZZLE_MODE, FILL_MODE
};
// Bytes of u8, u16, u32, s32, u64, s64, f16, f32, f32.ftz, f64, bf16, tf32, tf32.ftz.
const u8 ELEMENT_BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 4, 8, 2, 4, 4};

void set_field(Warp& w, const Instruction& in, RawMap& raw, u32 index, u64 value) {
  const auto refuse = [&](const char* what) { report(w, in, Kind::TENSOR_MAP, what); };
  switch (in.mode) {
    case GLOBAL_ADDRESS: raw.base = value; break;
    case RANK: raw.rank = u32(value) + 1; break;
    case BOX_DIM: raw.box[index] = u32(value); break;
    case GLOBAL_DIM: raw.size[index] = value; break;
    case GLOBAL_STRIDE:
      if (index < 4) raw.stride[index] = value;
      break;
    case ELEMENT_STRIDE:
      if (value != 1) refuse("element strides other than 1 are not supported");
      break;
    case ELEMTYPE:
      if (value >= sizeof ELEMENT_BYTES) refuse("the element type is not supported");
      else raw.element = ELEMENT_BYTES[value];
      break;
    case INTERLEAVE_LAYOUT:
      if (value) refuse("interleaved layouts are not supported");
      break;
    case SWIZZLE_MODE: raw.swizzle = u8(value); break;
    default: raw.fill = u8(value);
  }
}

// a: map, b: index, c: value
void replace(Warp& w, const Instruction& in, u32 mask) {
  const u32 l = first_lane(mask);
  const u64 address = address_at(w, in.a, in.offset, l);
  const u64 index = in.b.used() ? bits_at(w, in.b, l) : 0;
  if (index > 4) {
    report(w, in, Kind::TENSOR_MAP, format("dimension %u", u32(index)));
    return;
  }
  RawMap raw;
  u8* bytes = reinterpret_cast<u8*>(&raw);
  for (u32 i = 0; i < MAP_BYTES; i += 16) load(w, in, l, address + i, 16, bytes + i, in.space);
  raw.magic = MAP_MAGIC;
  set_field(w, in, raw, u32(index), bits_at(w, in.c, l));
  for (u32 i = 0; i < MAP_BYTES; i += 16) store(w, in, l, address + i, 16, bytes + i, in.space);
}

// From shared (b) to global (a), by the whole warp; it makes the map known to the copy engine.
void publish(Warp& w, const Instruction& in, u32 mask) {
  if (!whole_warp(w, in, mask)) return;
  const u64 to = address_at(w, in.a, in.offset, 0), from = address_at(w, in.b, in.offset_b, 0);
  u8 bytes[16];
  for (u32 i = 0; i < MAP_BYTES; i += 16) {
    load(w, in, COLLECTIVE, from + i, 16, bytes, Space::SHARED);
    store(w, in, COLLECTIVE, to + i, 16, bytes, Space::GLOBAL);
  }
}

}  // namespace

void decode_tensormap(Decode& x) {
  Instruction& in = x.in;
  if (x.has("cp_fenceproxy")) {
    x.ignore({"global", "shared", "tensormap", "release", "gpu", "cta", "sys", "sync", "aligned"});
    x.address(0, in.a, in.offset);
    x.address(1, in.b, in.offset_b);
    in.converge = Converge::WARP;
    in.run = publish;
    return;
  }
  if (!x.has("replace")) fail("the operation is not supported");
  const Type t = x.type();
  x.has("tile");
  x.has("b1024");
  const int field = x.one_of({"global_address", "rank", "box_dim", "global_dim", "global_stride",
                              "element_stride", "elemtype", "interleave_layout", "swizzle_mode",
                              "fill_mode"});
  if (field < 0) fail("the field is not supported");
  in.mode = u32(field);
  in.space = x.space();
  x.address(0, in.a, in.offset);
  if (x.count() > 2) in.b = x.source(1, {'u', 4, false});
  in.c = x.source(x.count() - 1, t);
  in.run = replace;
}

}  // namespace ptx
