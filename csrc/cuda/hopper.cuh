// One pass over a bank of 16-bit rows of at most 256 columns by the instructions of compute
// capability 9.0: attention with K = V.
//
// A block holds 128 queries and walks its part of the bank in tiles of 64 rows. One thread brings
// tiles into a ring, one warp finds which of their columns count, and two warpgroups of 64 queries
// multiply. The same tile gives S = Q M^T, read along its rows, and O += P M, read across them; P
// never leaves the registers of S. The next S is formed before O takes the weights of this one.
#pragma once

#include "device/columns.cuh"
#include "device/mbarrier.cuh"
#include "device/row_dot.cuh"
#include "device/row_sums.cuh"
#include "device/wgmma.cuh"

namespace sede_cuda {

template <class T, int D, int E, bool FULL, bool ACC>
struct HopperBlock {
  static constexpr int STAGES = hopper_stages(D), STEP = kHopperRows;
  static constexpr int WARPS = 4 * kHopperConsumers;  // that multiply
  using Rows = Tile<D>;
  using Place = RingPlace<STAGES>;

  const TensorMap &query, &bank;
  const Fused& op;
  const Side& side;
  unsigned queries, ring;  // shared addresses
  HopperColumns* columns;  // of each stage
  // Barriers: the queries are there; a tile is there; its columns are settled; its place is free.
  unsigned asked, full, ready, empty;
  int first_row, begin, end;  // tiles [begin, end), at least one
  float* limits;              // of the queries: the largest similarities that count

  __device__ __forceinline__ unsigned tile(const Place& at) const {
    return ring + at.stage * Rows::BYTES;
  }
  static __device__ __forceinline__ unsigned of(unsigned barriers, unsigned stage) {
    return barriers + stage * 8;
  }

  __device__ __forceinline__ void init_barriers() const {
    barrier_init(asked, 1);
    for (unsigned stage = 0; stage < STAGES; ++stage) {
      barrier_init(of(full, stage), 1);
      barrier_init(of(ready, stage), 1);
      barrier_init(of(empty, stage), WARPS);
    }
    publish_barriers();
  }

  // By one thread.
  __device__ __forceinline__ void bring() const {
    barrier_expect(asked, kHopperConsumers * Rows::BYTES);
    for (int group = 0; group < kHopperConsumers; ++group)
      Rows::load(queries + group * Rows::BYTES, query, first_row + group * STEP, asked);
    Place at;
#pragma unroll 1
    for (int t = begin; t < end; ++t, at.next()) {
      barrier_wait(of(empty, at.stage), at.parity ^ 1);
      barrier_expect(of(full, at.stage), Rows::BYTES);
      Rows::load(tile(at), bank, t * STEP, of(full, at.stage));
    }
  }

  // By one warp. Ids are read a tile ahead.
  __device__ __forceinline__ void settle() const {
    ColumnIds found(side.match, index_t(begin) * STEP, op.bank_rows);
    Place at;
#pragma unroll 1
    for (int t = begin; t < end; ++t, at.next()) {
      const ColumnIds next(side.match, index_t(t + 1) * STEP, op.bank_rows);
      barrier_wait(of(full, at.stage), at.parity);
      found.settle<D>(columns[at.stage], tile(at), t * STEP, ACC);
      __syncwarp();
      if (threadIdx.x % 32 == 0) barrier_arrive(of(ready, at.stage));
      found = next;
    }
  }

  // S = Q M^T.
  static __device__ __forceinline__ void issue_scores(float (&s)[32], unsigned rows,
                                                      unsigned tile) {
    const unsigned of_rows = by_columns(rows), of_tile = by_columns(tile);
#pragma unroll
    for (int k = 0; k < D / 16; ++k)
      Wgmma<T>::scores(s, columns_of(of_rows, k), columns_of(of_tile, k), k > 0);
    wgmma_commit();
  }
  // O += P M.
  template <int N>
  static __device__ __forceinline__ void issue_output(float (&o)[N], const unsigned (&p)[16],
                                                      unsigned tile) {
    const unsigned of_tile = by_rows(tile);
#pragma unroll
    for (int k = 0; k < STEP / 16; ++k) Wgmma<T>::output(o, p + 4 * k, rows_of(of_tile, k));
    wgmma_commit();
  }

  // Those of this warp's rows, once, in shared memory: the loop has no register for them.
  __device__ __forceinline__ void find_limits(int first) const {
    const int row[2] = {first, first + 8};
    float limit[2];
    if (side.key != nullptr) {
      limits_of_rows<T>(op, side, row, limit);
    } else {
#pragma unroll
      for (int r = 0; r < 2; ++r) limit[r] = side.match.limit[min(row[r], int(op.rows) - 1)];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (threadIdx.x % 4 == 0) limits[row[r] - first_row] = limit[r];
    __syncwarp();
  }

  // This warp has read all that it needs of a tile.
  __device__ __forceinline__ void release(const Place& at) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(of(empty, at.stage));
  }

  // By two warpgroups.
  __device__ __forceinline__ void multiply(const float (&c2)[E]) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // Of this warpgroup. By a shuffle the assembler knows that it is one number for a warp.
    unsigned rows = queries + __shfl_sync(kAllLanes, warp / 4, 0) * Rows::BYTES;
    const int first = first_row + warp * 16 + lane / 4;
    if (side.limited) find_limits(first);
    const RowMatch match(side.match, side.limited ? limits : nullptr, first, op.rows);
    RowSums<E, FULL> sums(op.want, op.fixed != 0);
    float s[32], o[ACC ? D / 2 : 1] = {};
    Place now;
    barrier_wait(asked, 0);
    if constexpr (ACC) {
      unsigned p[16];
      Place before;
      barrier_wait(of(ready, 0), 0);
      wgmma_fence();
      issue_scores(s, rows, tile(now));
      wgmma_wait<0>(s);
      match.mask(s, columns[0], sums.count);
      sums.weigh(s, c2, columns[0].first);
      sums.template round<T>(p, s);
#pragma unroll 1
      for (int left = end - begin - 1; left > 0; --left, before.next()) {
        now.next();
        barrier_wait(of(ready, now.stage), now.parity);
        hold(o);
        hold(p);
        hold(s);
        wgmma_fence();
        issue_scores(s, rows, tile(now));
        issue_output(o, p, tile(before));
        wgmma_wait<1>(s);
        match.mask(s, columns[now.stage], sums.count);
        sums.weigh(s, c2, columns[now.stage].first);
        wgmma_wait<0>(o);
        release(before);
        sums.rescale(o);
        sums.template round<T>(p, s);
      }
      hold(o);
      hold(p);
      wgmma_fence();
      issue_output(o, p, tile(before));
      wgmma_wait<0>(o);
    } else {
#pragma unroll 1
      for (int left = end - begin; left > 0; --left, now.next()) {
        barrier_wait(of(ready, now.stage), now.parity);
        hold(s);
        wgmma_fence();
        issue_scores(s, rows, tile(now));
        wgmma_wait<0>(s);
        match.mask(s, columns[now.stage], sums.count);
        const int from = columns[now.stage].first;
        release(now);
        sums.weigh(s, c2, from);
      }
    }
    sums.write(side.out, blockIdx.y, first, op.rows, op.dim, o);
  }
};

template <class T, int D, int E, bool FULL, bool ACC>
__device__ __forceinline__ void hopper(const HopperPass& pass) {
  using Block = HopperBlock<T, D, E, FULL, ACC>;
  extern __shared__ unsigned char memory[];
  __shared__ __align__(8) unsigned long long barriers[3 * Block::STAGES + 1];
  __shared__ float exponents[E], limits[kHopperQueries];
  const Fused& op = pass.pass;
  const int side = blockIdx.z, warp = threadIdx.x / 32;
  const int tiles = int((op.bank_rows + kHopperRows - 1) / kHopperRows);
  const int begin = int(blockIdx.y) * op.tiles_per_part;

  const unsigned unaligned = unsigned(__cvta_generic_to_shared(memory));
  const unsigned queries = (unaligned + 1023) & ~1023u;
  const unsigned ring = queries + kHopperConsumers * Block::Rows::BYTES;
  const unsigned columns = ring + Block::STAGES * Block::Rows::BYTES;
  const unsigned asked = unsigned(__cvta_generic_to_shared(barriers));
  const unsigned full = asked + 8, ready = full + Block::STAGES * 8;
  const Block block{pass.query[side],
                    pass.bank[side],
                    op,
                    op.side[side],
                    queries,
                    ring,
                    reinterpret_cast<HopperColumns*>(memory + (columns - unaligned)),
                    asked,
                    full,
                    ready,
                    ready + Block::STAGES * 8,
                    int(blockIdx.x) * kHopperQueries,
                    begin,
                    min(begin + op.tiles_per_part, tiles),
                    limits};
  load_bases(op.want, exponents);
  if (threadIdx.x == 0) block.init_barriers();
  __syncthreads();
  if (warp >= Block::WARPS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == Block::WARPS * 32) block.bring();
    if (warp == Block::WARPS + 1) block.settle();
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  float c2[E];
#pragma unroll
  for (int e = 0; e < E; ++e) c2[e] = exponents[e];
  block.multiply(c2);
}

}  // namespace sede_cuda
