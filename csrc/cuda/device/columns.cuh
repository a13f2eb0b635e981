// Which columns of a tile count, found once a tile by one warp for all rows of a block.
#pragma once

#include "match.cuh"
#include "row_sums.cuh"
#include "tensor_copy.cuh"

namespace sede_cuda {

// The ids of the tile from row `first` on; lane n has those of columns n and n + 32.
struct ColumnIds {
  index_t id[2];
  bool inside[2];

  __device__ __forceinline__ ColumnIds(const Match& match, index_t first, index_t rows) {
    const index_t* ids = match.bank_ids;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const index_t column = first + half * 32 + threadIdx.x % 32;
      inside[half] = column < rows;
      id[half] = ids != nullptr && inside[half] ? ids[column] : 0;
      if (ids != nullptr && !match.in_batch) inside[half] = inside[half] && id[half] != kEmpty;
    }
  }

  // Writes them, and zeros over the rows of empty slots, which may hold anything. By a whole warp.
  template <int COLUMNS>
  __device__ __forceinline__ void settle(HopperColumns& to, unsigned tile, int first,
                                         bool sums_rows) const {
    const int lane = threadIdx.x % 32;
    bool cleared = false;
    if (lane == 0) to.first = first;
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
  const Match& match;
  const float* limits;  // of the block's rows in shared memory, or null
  int first, last;      // rows beyond the last one are as the last one
  unsigned low[2];      // the low words of their ids
  bool compares;        // whether a column of the row's own id is none of its negatives

  __device__ __forceinline__ RowMatch(const Match& of, const float* limits_of_block, int first_row,
                                      index_t rows)
      : match(of), limits(limits_of_block), first(first_row), last(int(rows) - 1), low{} {
    compares = match.select == sede_cuda::mask && match.query_ids != nullptr &&
               match.bank_ids != nullptr;
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (compares) low[r] = unsigned(match.query_ids[row(r)]);
  }
  __device__ __forceinline__ int row(int r) const { return min(first + 8 * r, last); }

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
    if (match.in_batch) some |= unsigned(first + 8 - columns.first) < kHopperRows + 8;
    count[0] += 16;
    count[1] += 16;
    if (some) leave_out(s, columns, counts, count);
    if (limits != nullptr) {
      const unsigned in_block = unsigned(first) % kHopperQueries;
      const float limit[2] = {limits[in_block], limits[in_block + 8]};
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const bool in = s[i] <= limit[row_of(i)];
        s[i] = in ? s[i] : -infinity();
        count[row_of(i)] -= !in;
      }
    }
  }

 private:
  __device__ __forceinline__ void leave_out(float (&s)[32], const HopperColumns& columns,
                                            uint2 counts, int (&count)[2]) const {
    const int pair = threadIdx.x % 4 * 2;
    const bool others = match.in_batch != 0;
    const index_t id[2] = {compares ? match.query_ids[row(0)] : 0,
                           compares ? match.query_ids[row(1)] : 0};
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int column = i / 4 * 8 + pair + i % 2, r = row_of(i);
      const index_t its = columns.ids[column];
      // No branches. In a batch an id of -1 is unknown, and a row's own key is never a negative.
      const bool same = (compares & (its == id[r]) & !(others & (its == kEmpty))) |
                        (others & (columns.first + column == first + 8 * r));
      const bool in = ((i < 16 ? counts.x : counts.y) >> column % 32 & 1) & !same;
      s[i] = in ? s[i] : -infinity();
      count[r] -= !in;
    }
  }
};

}  // namespace sede_cuda
