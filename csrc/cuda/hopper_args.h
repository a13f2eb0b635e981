// What the host hands to the kernels of compute capability 9.0.
#pragma once

#include "args.h"

namespace sede_cuda {

// A CUtensorMap: the driver writes it, and the copy engine reads it.
struct alignas(64) TensorMap {
  std::uint64_t words[16];
};

struct HopperPass {
  TensorMap query[2], bank[2];  // of the sides
  Fused pass;
};

// Rows of a tile, and 16-bit columns of a box of one.
constexpr int kHopperRows = 64, kHopperBox = 64;
// Two warpgroups multiply; one brings tiles.
constexpr int kHopperConsumers = 2, kHopperThreads = 128 * (kHopperConsumers + 1);
constexpr int kHopperQueries = kHopperConsumers * kHopperRows;  // of a block

constexpr int hopper_stages(int columns) { return columns <= 64 ? 8 : columns <= 128 ? 6 : 4; }

// Of a stage, beside its tile: ids, their low words, and which columns count.
struct HopperColumns {
  index_t ids[kHopperRows];
  unsigned low[kHopperRows];
  unsigned counts[kHopperRows / 32];
  int first;  // the tile's first row of the bank
  int unused;
};

// Queries, tiles and columns of all stages, and what aligning them takes.
constexpr unsigned hopper_shared(int columns) {
  return unsigned((kHopperQueries + hopper_stages(columns) * kHopperRows) * columns * 2 +
                  hopper_stages(columns) * int(sizeof(HopperColumns)) + 1024);
}

}  // namespace sede_cuda
