// One pass over a bank: attention with K = V. Rows of 16 bits have at most 512 columns, those of fp32,
// which are rounded to tf32, at most 256.
//
// A block holds ROWS queries and walks its part of the bank in tiles of COLS rows, two of them in
// shared memory. The same tile gives S = Q M^T and, transposed by ldmatrix, O += P M; the registers
// that hold S are those in which the next product wants P. A warp has 16 queries and all of O; of
// more than 256 columns it has half, and two warps form the same S.
#pragma once

#include <climits>

#include "device/match.cuh"
#include "device/mma.cuh"
#include "device/reduce.cuh"
#include "device/row_dot.cuh"
#include "device/row_out.cuh"

namespace sede_cuda {

template <class T, int D, int WARPS, int E, bool FULL, bool ACC>
struct FusedPass {
  static constexpr int GROUPS = fused_groups(D, ACC), WIDTH = D / GROUPS;
  static constexpr int ROWS = 16 * WARPS, COLS = fused_columns(D, E, ACC, sizeof(T));
  static constexpr int THREADS = 32 * WARPS * GROUPS;
  static constexpr int VECTOR = 16 / sizeof(T), CHUNKS = D / VECTOR;  // of 16 bytes
  static constexpr int ROW_BYTES = D * sizeof(T);
  // Queries, two tiles of the bank, two tiles of its ids.
  static constexpr int SHARED = ROWS * ROW_BYTES + 2 * COLS * ROW_BYTES + 2 * COLS * 8;

  const Fused& op;
  const Side& side;
  unsigned queries, tiles, tile_ids;  // shared addresses
  const index_t* ids_at;              // the same memory as tile_ids
  int first_row;

  // Chunks are swizzled, so that the eight rows of an ldmatrix lie in different banks.
  static __device__ __forceinline__ unsigned at(unsigned tile, int row, int chunk) {
    return tile + row * ROW_BYTES + (chunk ^ (row & 7)) * 16;
  }

  __device__ __forceinline__ void copy_queries() {
    const T* query = static_cast<const T*>(side.query);
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
      const int r = i / CHUNKS, c = i % CHUNKS;
      const index_t row = first_row + r;
      const bool inside = row < op.rows && c * VECTOR < op.dim;
      copy16(at(queries, r, c), inside ? query + row * op.query_stride + c * VECTOR : query,
             inside ? 16 : 0);
    }
  }

  // Rows of empty slots may hold anything: zeros take their place.
  __device__ __forceinline__ void copy_tile(int tile, int stage) {
    const T* bank = static_cast<const T*>(side.bank);
    const index_t* ids = side.match.bank_ids;
    const index_t first = index_t(tile) * COLS;
    const unsigned to = tiles + stage * COLS * ROW_BYTES;
    for (int i = threadIdx.x; i < COLS * CHUNKS; i += THREADS) {
      const int r = i / CHUNKS, c = i % CHUNKS;
      const index_t row = first + r;
      bool inside = row < op.bank_rows && c * VECTOR < op.dim;
      if (inside && ids != nullptr && !side.match.in_batch) inside = ids[row] != kEmpty;
      copy16(at(to, r, c), inside ? bank + row * op.bank_stride + c * VECTOR : bank,
             inside ? 16 : 0);
    }
    if (ids != nullptr && threadIdx.x < COLS) {
      const index_t row = first + threadIdx.x;
      const bool inside = row < op.bank_rows;
      copy8(tile_ids + (stage * COLS + threadIdx.x) * 8, inside ? ids + row : ids, inside ? 8 : 0);
    }
  }

  __device__ __forceinline__ void run() {
    const int warp = threadIdx.x / 32 % WARPS, lane = threadIdx.x % 32, part = blockIdx.y;
    const int first_chunk = int(threadIdx.x) / (32 * WARPS) * WIDTH / VECTOR;  // of this warp's O
    const Match& match = side.match;
    const Want& want = side.further ? op.further : op.want;
    const bool row_ids = match.query_ids != nullptr, col_ids = match.bank_ids != nullptr;
    const int all = int((op.bank_rows + COLS - 1) / COLS);
    const int begin = part * op.tiles_per_part, end = min(begin + op.tiles_per_part, all);

    // Element e of a quad of S lies in row e / 2 of these two and in column e % 2 of a pair.
    int row[2];
    index_t own[2];
    float limit[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row[r] = first_row + warp * 16 + lane / 4 + 8 * r;
      const bool inside = row[r] < op.rows;
      own[r] = row_ids && inside ? match.query_ids[row[r]] : 0;
      limit[r] = FULL && match.limit != nullptr && inside ? match.limit[row[r]] : infinity();
    }
    __shared__ float exponents[E];
    load_bases(want, exponents);
    __syncthreads();
    float c2[E];
#pragma unroll
    for (int e = 0; e < E; ++e) c2[e] = exponents[E > 1 && e < 2 ? e ^ side.plane : e];
    if (FULL && side.key != nullptr) limits_of_rows<T>(op, side, row, limit);

    float o[ACC ? WIDTH / 8 : 1][4] = {};
    // Similarities are at most 1, and so is the peak. The widest tile has no register for it.
    const bool fixed = !FULL && !(D == 256 && E == 1) && op.fixed != 0;
    const float start = fixed ? 1.f : -infinity();
    float peak[2] = {start, start}, total[E][2] = {}, mass[2] = {}, moment[E][2] = {};
    int count[2] = {}, index[2] = {-1, -1};  // of the peak

    copy_queries();
    if (begin < end) copy_tile(begin, 0);
    commit_copies();
#pragma unroll 1
    for (int t = begin; t < end; ++t) {
      const int stage = (t - begin) & 1;
      if (t + 1 < end) copy_tile(t + 1, stage ^ 1);
      commit_copies();
      await_copies<1>();
      __syncthreads();
      const unsigned now = tiles + stage * COLS * ROW_BYTES;

      float s[COLS / 8][4] = {};
#pragma unroll 4
      for (int k = 0; k < ROW_BYTES / 32; ++k) {
        unsigned a[4];
        ldmatrix(a, at(queries, warp * 16 + lane % 16, k * 2 + lane / 16));
        round_operand<T>(a);
#pragma unroll
        for (int n = 0; n < COLS / 16; ++n) {
          unsigned b[4];
          ldmatrix(b, at(now, n * 16 + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
          round_operand<T>(b);
          mma<T>(s[2 * n], a, b[0], b[1]);
          mma<T>(s[2 * n + 1], a, b[2], b[3]);
        }
      }

      bool some = false;
      float high[2] = {peak[0], peak[1]};
      int found[2] = {INT_MAX, INT_MAX};  // the lowest column of a new peak
#pragma unroll
      for (int n = 0; n < COLS / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int in_tile = n * 8 + lane % 4 * 2 + e % 2, r = e / 2;
          const int col = t * COLS + in_tile;
          const index_t id = col_ids ? ids_at[stage * COLS + in_tile] : 0;
          bool in = counts(match.select, match.in_batch != 0, row_ids, col_ids, row[r], col,
                           int(op.bank_rows), own[r], id);
          if (FULL && side.limited) in = in && s[n][e] <= limit[r];
          count[r] += in;
          some = some || in;
          s[n][e] = in ? s[n][e] : -infinity();
          if (FULL && s[n][e] > high[r]) found[r] = col;
          high[r] = fmaxf(high[r], s[n][e]);
        }
      // Few of a query's positives are in a bank: most tiles add nothing to O.
      if (FULL) some = match.select != positive || __any_sync(kAllLanes, some);
      float base[E][2], shrink[E][2];
      bool moves = false;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float mine = high[r];
        high[r] = fixed ? 1.f : over_lanes<4>(mine, Larger());
        if (FULL) {
          const int lowest = over_lanes<4>(mine == high[r] ? found[r] : INT_MAX, Smaller());
          index[r] = high[r] > peak[r] ? lowest : index[r];
        }
#pragma unroll
        for (int e = 0; e < E; ++e) {
          base[e][r] = log2_base(high[r], c2[e]);
          shrink[e][r] = rebase(peak[r], base[e][r], c2[e]);
          total[e][r] *= shrink[e][r];
          moment[e][r] *= shrink[e][r];
        }
        mass[r] *= shrink[0][r];
        moves = moves || shrink[0][r] != 1.f;
        peak[r] = high[r];
      }
      // To change the base of O takes as long as a tenth of a product: only when some row needs it.
      if (ACC && __any_sync(kAllLanes, moves)) {
#pragma unroll
        for (int d = 0; d < WIDTH / 8; ++d)
#pragma unroll
          for (int e = 0; e < 4; ++e) o[d][e] *= shrink[0][e / 2];
      }
#pragma unroll
      for (int e = E - 1; e > 0; --e)
#pragma unroll
        for (int n = 0; n < COLS / 8; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            add(s[n][i], c2[e], base[e][i / 2], total[e][i / 2], moment[e][i / 2]);
#pragma unroll
      for (int n = 0; n < COLS / 16; ++n) {
        unsigned p[4];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float* v = s[2 * n + h];
#pragma unroll
          for (int i = 0; i < 4; ++i)
            v[i] = add(v[i], c2[0], base[0][i / 2], total[0][i / 2], moment[0][i / 2]);
          if constexpr (ACC && sizeof(T) == 4) {
            add_rows(v, mass, o, now, n * 16 + h * 8, first_chunk, !FULL || some);
          } else if constexpr (ACC) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              p[2 * h + r] = pack<T>(v[2 * r], v[2 * r + 1]);
              mass[r] += sum_of_two<T>(p[2 * h + r]);
            }
          }
        }
        if constexpr (ACC && sizeof(T) == 2) {
          if (FULL && !some) continue;
#pragma unroll
          for (int d = 0; d < WIDTH / 16; ++d) {
            unsigned b[4];
            const int chunk = first_chunk + d * 2 + lane / 16;
            ldmatrix_transposed(b, at(now, n * 16 + lane % 16, chunk));
            mma<T>(o[2 * d], p, b[0], b[1]);
            mma<T>(o[2 * d + 1], p, b[2], b[3]);
          }
        }
      }
      __syncthreads();  // the next copy takes this tile's place
    }
    await_copies<0>();
    write(part, row, first_chunk * VECTOR, peak, total, mass, moment, count, index, o);
  }

  // O += P M of eight rows of a tile in tf32. A lane has columns 2t and 2t + 1 of P where the product
  // wants t and t + 4: it takes rows of M in the same order.
  __device__ __forceinline__ void add_rows(const float* v, float (&mass)[2],
                                           float (&o)[ACC ? WIDTH / 8 : 1][4], unsigned tile,
                                           int first, int first_chunk, bool some) {
    const int lane = threadIdx.x % 32, row = first + lane % 4 * 2, column = lane / 4;
    const unsigned p[4] = {tf32(v[0]), tf32(v[2]), tf32(v[1]), tf32(v[3])};
#pragma unroll
    for (int r = 0; r < 2; ++r)
      mass[r] += __uint_as_float(p[r]) + __uint_as_float(p[2 + r]);
    if (!some) return;
#pragma unroll
    for (int d = 0; d < WIDTH / 8; ++d) {
      const int chunk = first_chunk + d * 2 + column / 4, byte = column % 4 * 4;
      mma<T>(o[d], p, tf32(load_shared(at(tile, row, chunk) + byte)),
             tf32(load_shared(at(tile, row + 1, chunk) + byte)));
    }
  }

  // The weight of s, which joins the sums.
  static __device__ __forceinline__ float add(float s, float c2, float base, float& total,
                                              float& moment) {
    const float p = exp2_fast(fmaf(s, c2, -base));
    total += p;
    if (FULL) moment += s == -infinity() ? 0.f : p * s;
    return p;
  }

  __device__ __forceinline__ void write(int part, const int (&row)[2], int first_column,
                                        const float (&peak)[2],
                                        float (&total)[E][2], float (&mass)[2],
                                        float (&moment)[E][2], int (&count)[2],
                                        const int (&index)[2],
                                        const float (&o)[ACC ? WIDTH / 8 : 1][4]) {
    const int lane = threadIdx.x % 32;
    const Partial& out = side.out;
    const Want& want = side.further ? op.further : op.want;
    const index_t B = op.rows;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int e = 0; e < E; ++e) {
        total[e][r] = over_lanes<4>(total[e][r], Plus());
        if (FULL) moment[e][r] = over_lanes<4>(moment[e][r], Plus());
      }
      mass[r] = over_lanes<4>(mass[r], Plus());
      count[r] = over_lanes<4>(count[r], Plus());
      if (row[r] >= B) continue;
      const index_t slot = index_t(part) * B + row[r];
      const index_t sum = (index_t(part) * want.accumulators + side.plane) * B + row[r];
      if (ACC && lane % 4 == 0 && first_column == 0) out.mass[sum] = mass[r];
      if (lane % 4 == 0 && first_column == 0 && side.plane == 0)
        write_sums<FULL>(out, want.exponents, part, B, row[r], r, peak, count, index, total, moment);
      if constexpr (ACC) {
#pragma unroll
        for (int d = 0; d < WIDTH / 8; ++d) {
          const int col = first_column + d * 8 + lane % 4 * 2;
          if (col < op.dim)
            *reinterpret_cast<float2*>(out.acc + sum * op.dim + col) =
                make_float2(o[d][2 * r], o[d][2 * r + 1]);
        }
      }
    }
  }
};

template <class T, int D, int WARPS, int E, bool FULL, bool ACC>
__device__ __forceinline__ void fused(const Fused& op) {
  extern __shared__ __align__(128) unsigned char memory[];
  using Pass = FusedPass<T, D, WARPS, E, FULL, ACC>;
  const unsigned queries = shared_address(memory);
  const unsigned tiles = queries + Pass::ROWS * Pass::ROW_BYTES;
  const unsigned ids = tiles + 2 * Pass::COLS * Pass::ROW_BYTES;
  Pass pass{op, op.side[blockIdx.z], queries, tiles, ids,
            reinterpret_cast<const index_t*>(memory + (ids - queries)),
            int(blockIdx.x) * Pass::ROWS};
  pass.run();
}

}  // namespace sede_cuda
