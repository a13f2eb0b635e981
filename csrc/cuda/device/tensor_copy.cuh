// Tiles of rows in shared memory, brought by the copy engine. From sm_90 on.
//
// A tile of 64 rows is COLUMNS / 64 boxes of 64 columns: 128 bytes a row, swizzled. A tile lies on
// 1,024 bytes, where the pattern of the swizzle starts.
#pragma once

#include "../hopper_args.h"

namespace sede_cuda {

constexpr int kBoxRow = kHopperBox * 2, kBoxBytes = kHopperRows * kBoxRow;

template <int COLUMNS>
struct Tile {
  static constexpr int BOXES = COLUMNS / kHopperBox, BYTES = BOXES * kBoxBytes;

  // Rows beyond the tensor arrive as zeros, and their bytes count in full.
  static __device__ __forceinline__ void load(unsigned to, const TensorMap& map, int row,
                                              unsigned barrier) {
#pragma unroll
    for (int box = 0; box < BOXES; ++box)
      asm volatile(
          "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
          "[%0], [%1, {%2, %3}], [%4];" ::"r"(to + box * kBoxBytes),
          "l"(&map), "r"(box * kHopperBox), "r"(row), "r"(barrier)
          : "memory");
  }

  // Zeros take the place of a row. By a whole warp; `publish_writes` has to follow.
  static __device__ __forceinline__ void clear_row(unsigned tile, int row) {
    for (int chunk = threadIdx.x % 32; chunk < BYTES / kHopperRows / 16; chunk += 32)
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(
                       tile + chunk / 8 * kBoxBytes + row * kBoxRow + chunk % 8 * 16),
                   "r"(0)
                   : "memory");
  }
};

// What this thread wrote to shared memory is there for the tensor cores and the copy engine.
__device__ __forceinline__ void publish_writes() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace sede_cuda
