// One pass over a bank in fp32: rows of at most 512 columns, of any dtype and stride.
//
// A block holds ROWS queries and walks its part of the bank in tiles of COLS rows; both become fp32
// on their way to shared memory. A warp has 16 queries. Its lanes form S in the places where a
// tensor core would leave it: two rows, and a pair of every eight columns. Weights pass through
// shared memory, and a lane has some columns of O for all 16 queries. Of more than 256 columns a
// warp has half of O, and two warps form the same S.
#pragma once

#include "device/match.cuh"
#include "device/row_sums.cuh"
#include "exact_args.h"

namespace sede_cuda {

// Four neighbouring elements, as wide as a vector of them.
template <class T>
struct alignas(4 * sizeof(T)) Four {
  T of[4];
};

template <int D, bool ACC>
struct ExactKernel {
  static constexpr int WARPS = exact_warps(D), GROUPS = exact_groups(D, ACC);
  static constexpr int ROWS = 16 * WARPS, COLS = exact_columns(D);
  static constexpr int THREADS = exact_threads(D, ACC);
  static constexpr int WIDTH = D / GROUPS;            // columns of O of a warp
  static constexpr int MINE = ACC ? WIDTH / 32 : 1;   // and of a lane
  static constexpr int NEXT = MINE < 4 ? MINE : 4;    // neighbouring ones among them
  static constexpr int SCORES = COLS / 8 * 4;         // of S in a lane
  static constexpr int BATCH = 4;                     // vectors that a thread reads at once

  const ExactPass& op;
  const ExactSide& side;
  index_t* ids;           // of the tile
  float* scales;          // of its rows
  float *queries, *tile;  // vectors are swizzled: see at()
  float* weights;
  int first_row;

  __device__ __forceinline__ ExactKernel(const ExactPass& pass, unsigned char* memory)
      : op(pass), side(pass.side[blockIdx.z]), first_row(int(blockIdx.x) * ROWS) {
    ids = reinterpret_cast<index_t*>(memory);
    queries = reinterpret_cast<float*>(ids + COLS);
    tile = queries + ROWS * D;
    weights = tile + COLS * D;
    scales = weights + (ACC ? WARPS * COLS * kExactWeights : 0);
  }

  // Where four columns of a row lie: those of eight neighbouring rows in different banks.
  static __device__ __forceinline__ int at(int row, int vector) {
    return row * D + (vector ^ (row & 7)) * 4;
  }

  // Columns 4 vector, ... of a row; zeros beyond the last one.
  template <class T>
  __device__ __forceinline__ float4 read(const Matrix& m, index_t row, int vector,
                                         bool vectors) const {
    const T* from = static_cast<const T*>(m.data) + row * m.row_stride;
    const int left = op.dim - vector * 4;
    if (vectors && left >= 4) {
      const Four<T> x = *reinterpret_cast<const Four<T>*>(from + vector * 4);
      return make_float4(number(x.of[0]), number(x.of[1]), number(x.of[2]), number(x.of[3]));
    }
    float x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      x[i] = i < left ? number(from[(index_t(vector) * 4 + i) * m.col_stride]) : 0.f;
    return make_float4(x[0], x[1], x[2], x[3]);
  }

  // Rows first, first + 1, ... become fp32; zeros beyond `rows`, and for rows of empty slots, which
  // may hold anything. Neighbouring threads read what is neighbouring in memory.
  template <class T, int COUNT>
  __device__ __forceinline__ void stage(float* to, const Matrix& m, index_t first, index_t rows,
                                        const index_t* slots, bool vectors) const {
    constexpr int VECTORS = D / 4;
    static_assert(COUNT * VECTORS % (BATCH * THREADS) == 0, "every thread has as many");
    const bool along_rows = m.col_stride != 1 && m.row_stride == 1;
#pragma unroll 1
    for (int from = threadIdx.x; from < COUNT * VECTORS; from += BATCH * THREADS) {
      float4 x[BATCH];
#pragma unroll
      for (int b = 0; b < BATCH; ++b) {
        const int i = from + b * THREADS;
        const int r = along_rows ? i % COUNT : i / VECTORS;
        const index_t row = first + r;
        const bool inside = row < rows && (slots == nullptr || slots[row] != kEmpty);
        x[b] = make_float4(0.f, 0.f, 0.f, 0.f);
        if (inside) x[b] = read<T>(m, row, along_rows ? i / COUNT : i % VECTORS, vectors);
      }
#pragma unroll
      for (int b = 0; b < BATCH; ++b) {
        const int i = from + b * THREADS;
        const int r = along_rows ? i % COUNT : i / VECTORS;
        *reinterpret_cast<float4*>(to + at(r, along_rows ? i / COUNT : i % VECTORS)) = x[b];
      }
    }
  }

  __device__ __forceinline__ void stage_queries() const {
    const Matrix& m = side.query;
    const bool vectors = side.query_vectors != 0;
    if (m.dtype == f32)
      stage<float, ROWS>(queries, m, first_row, op.rows, nullptr, vectors);
    else if (m.dtype == bf16)
      stage<Bf16, ROWS>(queries, m, first_row, op.rows, nullptr, vectors);
    else
      stage<F16, ROWS>(queries, m, first_row, op.rows, nullptr, vectors);
  }

  __device__ __forceinline__ void stage_tile(index_t first) const {
    const Matrix& m = side.bank;
    const bool vectors = side.bank_vectors != 0;
    const index_t* slots = side.match.in_batch ? nullptr : side.match.bank_ids;
    if (m.dtype == f32)
      stage<float, COLS>(tile, m, first, op.bank_rows, slots, vectors);
    else if (m.dtype == bf16)
      stage<Bf16, COLS>(tile, m, first, op.bank_rows, slots, vectors);
    else if (m.dtype == f16)
      stage<F16, COLS>(tile, m, first, op.bank_rows, slots, vectors);
    else
      stage<signed char, COLS>(tile, m, first, op.bank_rows, slots, vectors);
    if (threadIdx.x >= COLS) return;
    const index_t row = first + threadIdx.x;
    const bool inside = row < op.bank_rows;
    const index_t id = inside && side.match.bank_ids != nullptr ? side.match.bank_ids[row] : 0;
    ids[threadIdx.x] = id;
    const bool scaled = inside && side.row_scale != nullptr && !(slots != nullptr && id == kEmpty);
    scales[threadIdx.x] = scaled ? side.row_scale[row] : 1.f;
  }

  // s+ + margin of a thread's two rows, added up as in row_dot.cuh. Four lanes have them.
  __device__ __forceinline__ void limits_of_keys(int in_block, float (&limit)[2]) const {
    const float margin = number_of(op.margin);
#pragma unroll 1
    for (int r = 0; r < 2; ++r) {
      const int own = in_block + 8 * r;
      const index_t row = min(index_t(first_row + own), op.rows - 1);
      float sum = 0.f;
#pragma unroll 1
      for (int first = threadIdx.x % 4 * 8; first < op.dim; first += 32) {
        float of_8 = 0.f;
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          if (first + c >= op.dim) break;
          const float query = queries[at(own, (first + c) / 4) + c % 4];
          of_8 = fmaf(query, element(side.key, row, first + c), of_8);
        }
        sum += of_8;
      }
      sum = over_lanes<4>(sum, Plus()) + margin;
      limit[0] = r == 0 ? sum : limit[0];
      limit[1] = r == 0 ? limit[1] : sum;
    }
  }

  static __device__ __forceinline__ void add(float& sum, const float4& a, const float4& b) {
    sum = fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
  }
  static __device__ __forceinline__ float4 four(const void* from) {
    return *static_cast<const float4*>(from);
  }

  // S of a warp's queries. Of a row's place in bytes the columns are the low bits: one exclusive or
  // finds them for all rows that end in the same three bits.
  __device__ __forceinline__ void multiply(int row, float (&s)[SCORES]) const {
    constexpr int BYTES = D * 4;
    const int pair = threadIdx.x % 4 * 2, end = (op.dim + 3) / 4 * 16;
    const unsigned char* const left = reinterpret_cast<const unsigned char*>(queries);
    const unsigned char* const right = reinterpret_cast<const unsigned char*>(tile);
    const int of_query = row * BYTES + (row & 7) * 16, of_bank = pair * (BYTES + 16);
#pragma unroll 2
    for (int k = 0; k < end; k += 16) {
      const unsigned char* const query = left + (of_query ^ k);
      const float4 a = four(query), b = four(query + 8 * BYTES);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const unsigned char* const bank = right + ((of_bank + j * (BYTES + 16)) ^ k);
#pragma unroll
        for (int n = 0; n < COLS / 8; ++n) {
          const float4 m = four(bank + n * 8 * BYTES);
          add(s[n * 4 + j], a, m);
          add(s[n * 4 + 2 + j], b, m);
        }
      }
    }
  }

  // -inf where a column does not count. Whether one of this lane does.
  __device__ __forceinline__ bool leave_out(float (&s)[SCORES], const int (&row)[2],
                                            const index_t (&own)[2], const float (&limit)[2],
                                            int first, int (&count)[2]) const {
    const Match& match = side.match;
    const bool row_ids = match.query_ids != nullptr, col_ids = match.bank_ids != nullptr;
    bool some = false;
#pragma unroll
    for (int i = 0; i < SCORES; ++i) {
      const int c = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2, r = row_of(i);
      bool in = counts(match.select, match.in_batch != 0, row_ids, col_ids, row[r], first + c,
                       int(op.bank_rows), own[r], ids[c]);
      s[i] *= scales[c];
      if (side.limited) in = in && s[i] <= limit[r];
      s[i] = in ? s[i] : -infinity();
      count[r] += in;
      some = some || in;
    }
    return some;
  }

  // Weights of the tile, to shared memory; of two warps that have the same each writes half.
  __device__ __forceinline__ void hand_over(const float (&s)[SCORES], float* to,
                                            int group) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < SCORES; ++i) {
      if (GROUPS > 1 && i / 4 % GROUPS != group) continue;
      const int c = i / 4 * 8 + lane % 4 * 2 + i % 2;
      to[c * kExactWeights + lane / 4 + 8 * row_of(i)] = s[i] * scales[c];
    }
  }

  // Column `n` of a lane's part of O.
  static __device__ __forceinline__ int column(int group, int n) {
    return group * WIDTH + n / NEXT * 32 * NEXT + threadIdx.x % 32 * NEXT + n % NEXT;
  }

  // The largest similarities have grown: another base for O, where some row needs it.
  static __device__ __forceinline__ void rescale(float (&o)[16][MINE], const float (&shrink)[2]) {
    if (!__any_sync(kAllLanes, shrink[0] != 1.f || shrink[1] != 1.f)) return;
#pragma unroll
    for (int r = 0; r < 16; ++r) {
      const float by = __shfl_sync(kAllLanes, shrink[r / 8], r % 8 * 4);
#pragma unroll
      for (int n = 0; n < MINE; ++n) o[r][n] *= by;
    }
  }

  __device__ __forceinline__ void add_rows(float (&o)[16][MINE], const float* from,
                                           int group) const {
#pragma unroll 2
    for (int c = 0; c < COLS; ++c) {
      float p[16], m[MINE];
#pragma unroll
      for (int r = 0; r < 16; r += 4)
        *reinterpret_cast<float4*>(p + r) = four(from + c * kExactWeights + r);
#pragma unroll
      for (int n = 0; n < MINE; n += NEXT) {
        const int col = column(group, n);
        const float* row = tile + at(c, col / 4) + col % 4;
        if constexpr (NEXT == 4)
          *reinterpret_cast<float4*>(m + n) = four(row);
        else
          *reinterpret_cast<float2*>(m + n) = *reinterpret_cast<const float2*>(row);
      }
#pragma unroll
      for (int r = 0; r < 16; ++r)
#pragma unroll
        for (int n = 0; n < MINE; ++n) o[r][n] = fmaf(p[r], m[n], o[r][n]);
    }
  }

  __device__ __forceinline__ void run() {
    const int warp = threadIdx.x / 32 % WARPS, group = int(threadIdx.x) / (32 * WARPS);
    const int lane = threadIdx.x % 32, in_block = warp * 16 + lane / 4;
    const bool busy = first_row + warp * 16 < op.rows;  // a warp without queries waits
    const Want& want = side.further ? op.further : op.want;
    const Match& match = side.match;
    const int all = int((op.bank_rows + COLS - 1) / COLS);
    const int begin = int(blockIdx.y) * op.tiles_per_part;
    const int end = min(begin + op.tiles_per_part, all);

    __shared__ float exponents[kExponents];
    load_bases(want, exponents);
    stage_queries();
    __syncthreads();
    float c2[kExponents];
#pragma unroll
    for (int e = 0; e < kExponents; ++e) c2[e] = exponents[e < 2 ? e ^ side.plane : e];
    int row[2];
    index_t own[2];
    float limit[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row[r] = first_row + in_block + 8 * r;
      const bool inside = row[r] < op.rows;
      own[r] = match.query_ids != nullptr && inside ? match.query_ids[row[r]] : 0;
      limit[r] = match.limit != nullptr && inside ? match.limit[row[r]] : infinity();
    }
    if (side.key.data != nullptr) limits_of_keys(in_block, limit);

    RowSums<kExponents, true> sums(want, false);
    float o[16][MINE] = {};
    float* const mine = weights + warp * COLS * kExactWeights;
#pragma unroll 1
    for (int t = begin; t < end; ++t) {
      __syncthreads();  // the last tile and its weights have been read
      stage_tile(index_t(t) * COLS);
      __syncthreads();
      bool some = false;
      if (busy) {
        float s[SCORES] = {};
        multiply(in_block, s);
        some = leave_out(s, row, own, limit, t * COLS, sums.count);
        sums.weigh(s, c2, t * COLS);
        if constexpr (ACC) {
          rescale(o, sums.shrink);
          hand_over(s, mine, group);
        }
      }
      if constexpr (ACC) {
        if (GROUPS > 1)
          __syncthreads();
        else
          __syncwarp();
        // Few of a query's positives are in a bank: most tiles add nothing to O.
        const bool adds = match.select != positive || __any_sync(kAllLanes, some);
        if (busy && adds) add_rows(o, mine, group);
      }
    }
    if (busy) write(sums, o, want, warp, group, row);
  }

  __device__ __forceinline__ void write(RowSums<kExponents, true>& sums,
                                        const float (&o)[16][MINE], const Want& want, int warp,
                                        int group, const int (&row)[2]) const {
    const int part = blockIdx.y, lane = threadIdx.x % 32;
    const index_t B = op.rows;
    const index_t sum = (index_t(part) * want.accumulators + side.plane) * B;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int e = 0; e < kExponents; ++e) {
        sums.total[e][r] = over_lanes<4>(sums.total[e][r], Plus());
        sums.moment[e][r] = over_lanes<4>(sums.moment[e][r], Plus());
      }
      sums.count[r] = over_lanes<4>(sums.count[r], Plus());
      if (row[r] >= B || lane % 4 != 0 || group != 0) continue;
      if (ACC) side.out.mass[sum + row[r]] = sums.total[0][r];  // weights are not rounded
      if (side.plane == 0)
        write_sums<true>(side.out, want.exponents, part, B, row[r], r, sums.peak, sums.count,
                         sums.index, sums.total, sums.moment);
    }
    if constexpr (ACC) {
#pragma unroll
      for (int r = 0; r < 16; ++r) {
        const index_t at_row = index_t(first_row) + warp * 16 + r;
        if (at_row >= B) break;
        float* to = side.out.acc + (sum + at_row) * op.dim;
#pragma unroll
        for (int n = 0; n < MINE; ++n)
          if (column(group, n) < op.dim) to[column(group, n)] = o[r][n];
      }
    }
  }
};

}  // namespace sede_cuda
