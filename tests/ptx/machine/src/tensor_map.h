// Tensor maps: 128 bytes in a layout of our own, as the front in Python makes them.
#pragma once
#include "state.h"

namespace ptx {

constexpr u32 MAP_BYTES = 128, MAP_MAGIC = 0x4d545852;

struct RawMap {
  u32 magic, rank;
  u64 base, size[5], stride[4];
  u32 box[5];
  u8 element, swizzle, fill, interleave;
  u8 rest[16];
};
static_assert(sizeof(RawMap) == MAP_BYTES, "a tensor map has 128 bytes");

// Reports what is wrong with it and leaves `valid` false.
TensorMap read_map(Warp& w, const Instruction& in, u32 lane, u64 address);
// The swizzle of the copy engine: 1, 2, 3 for 32, 64, 128 bytes.
inline u32 swizzled(u32 address, u32 swizzle) {
  return address ^ ((address >> 7 & ((1u << swizzle) - 1)) << 4);
}

}  // namespace ptx
