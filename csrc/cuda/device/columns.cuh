// Which columns of a tile count, found once a tile by one warp for all rows of a block.
#pragma once

#include "match.cuh"
#include "reduce.cuh"
#include "tensor_copy.cuh"

namespace sede_cuda {

// The ids of the tile from row `first` on; lane n has those of columns n and n + 32.
struct ColumnIds {
  index_t id[2];
  bool inside[2];

  __device__ __forceinline__ ColumnIds(const index_t* ids, index_t first, index_t rows) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const index_t column = first + half * 32 + threadIdx.x % 32;
      inside[half] = column < rows;
      id[half] = ids != nullptr && inside[half] ? ids[column] : 0;
      inside[half] = inside[half] && (ids == nullptr || id[half] != kEmpty);
    }
  }

  // Writes them, and zeros over the rows of empty slots, which may hold anything. By a whole warp.
  template <int COLUMNS>
  __device__ __forceinline__ void settle(HopperColumns& to, unsigned tile, bool sums_rows) const {
    const int lane = threadIdx.x % 32;
    bool cleared = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      to.ids[half * 32 + lane] = id[half];
      to.low[half * 32 + lane] = unsigned(id[half]);
      const unsigned counts = __ballot_sync(kAllLanes, inside[half]);
      if (lane == 0) to.counts[half] = counts;
      unsigned empty = sums_rows ? ~counts : 0;
      cleared = cleared || empty != 0;
      while (empty != 0) {
        const int last = 31 - __clz(int(empty));
        Tile<COLUMNS>::clear_row(tile, half * 32 + last);
        empty ^= 1u << last;
      }
    }
    if (cleared) publish_writes();
  }
};

// Which of a thread's accumulators of S count: 16 of each of its two rows.
struct RowMatch {
  const index_t* ids;  // of rows; beyond the last one as of the last one
  int first, last;
  unsigned low[2];  // the low words of their ids
  bool compares;    // whether a column of the row's own id is none of its negatives

  __device__ __forceinline__ RowMatch(const Match& match, int first_row, index_t rows)
      : ids(match.query_ids), first(first_row), last(int(rows) - 1), low{}, compares(match.select == sede_cuda::mask && match.query_ids != nullptr &&
                        match.bank_ids != nullptr) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (compares) low[r] = unsigned(own(r));
  }
  __device__ __forceinline__ index_t own(int r) const { return ids[min(first + 8 * r, last)]; }

  // -inf where a column does not count; `count` grows by what counts.
  __device__ __forceinline__ void mask(float (&s)[32], const HopperColumns& columns,
                                       int (&count)[2]) const {
    const int pair = threadIdx.x % 4 * 2;
    const uint2 counts = *reinterpret_cast<const uint2*>(columns.counts);
    bool some = (counts.x & counts.y) != kAllLanes;
    if (compares) {
      // Equal low words are rare: whole ids are compared only where a thread has some.
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const uint2 of = *reinterpret_cast<const uint2*>(columns.low + n * 8 + pair);
#pragma unroll
        for (int r = 0; r < 2; ++r) some |= (of.x == low[r]) | (of.y == low[r]);
      }
    }
    count[0] += 16;
    count[1] += 16;
    if (!some) return;
    const index_t id[2] = {compares ? own(0) : 0, compares ? own(1) : 0};
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int column = i / 4 * 8 + pair + i % 2, r = i / 2 % 2;
      const bool same = compares & (columns.ids[column] == id[r]);  // no branches
      const bool in = ((i < 16 ? counts.x : counts.y) >> column % 32 & 1) & !same;
      s[i] = in ? s[i] : -infinity();
      count[r] -= !in;
    }
  }
};

}  // namespace sede_cuda
