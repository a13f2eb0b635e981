// The sums of a thread's two rows over the tiles so far, at E exponents. Weights are relative to a
// power of two at or above the largest, so that a change of it is exact. FULL: weighted sums of
// similarities and the hardest row besides, where they are wanted.
#pragma once

#include <climits>

#include "reduce.cuh"
#include "row_out.cuh"

namespace sede_cuda {

// Accumulator i of a thread lies in its row i / 2 % 2.
__device__ __forceinline__ constexpr int row_of(int i) { return i / 2 % 2; }

template <int E, bool FULL>
struct RowSums {
  const Want& want;
  bool fixed;  // similarities are at most 1, and so is the peak
  float peak[2], total[E][2] = {}, mass[2] = {}, moment[FULL ? E : 1][2] = {};
  float shrink[2] = {1.f, 1.f};
  int count[2] = {}, index[2] = {-1, -1};  // of the peak

  __device__ __forceinline__ RowSums(const Want& wanted, bool fixed_peak)
      : want(wanted), fixed(!FULL && fixed_peak) {
    peak[0] = peak[1] = fixed ? 1.f : -infinity();
  }

  // The largest similarities; `from` is the tile's first row of the bank.
  template <int N>
  __device__ __forceinline__ void look(const float (&s)[N], int from, float (&high)[2]) {
    int found[2] = {INT_MAX, INT_MAX};  // the lowest row of a new peak
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int r = row_of(i);
      if (FULL && s[i] > high[r]) found[r] = from + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
      high[r] = fmaxf(high[r], s[i]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float mine = high[r];
      high[r] = over_lanes<4>(mine, Larger());
      if (!FULL) continue;
      const int lowest = over_lanes<4>(mine == high[r] ? found[r] : INT_MAX, Smaller());
      index[r] = high[r] > peak[r] ? lowest : index[r];
    }
  }

  // Similarities become weights at the first exponent; the totals have them.
  template <int N>
  __device__ __forceinline__ void weigh(float (&s)[N], const float (&c2)[E], int from) {
    float high[2] = {peak[0], peak[1]};
    if (!fixed) look(s, from, high);
    float base[E][2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int e = 0; e < E; ++e) {
        base[e][r] = log2_base(high[r], c2[e]);
        const float changed = rebase(peak[r], base[e][r], c2[e]);
        total[e][r] *= changed;
        if (FULL) moment[e][r] *= changed;
        if (e == 0) shrink[r] = changed;
      }
      mass[r] *= shrink[r];
      peak[r] = high[r];
    }
#pragma unroll
    for (int e = E - 1; e >= 0; --e) {
      if (FULL && e >= want.exponents) continue;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const int r = row_of(i);
        const float weight = exp2_fast(fmaf(s[i], c2[e], -base[e][r]));
        total[e][r] += weight;
        if (FULL) moment[e][r] += s[i] == -infinity() ? 0.f : weight * s[i];
        if (e == 0) s[i] = weight;
      }
    }
  }

  // Weights as the product with the rows takes them.
  template <class T, int N>
  __device__ __forceinline__ void round(unsigned (&p)[N], const float (&weights)[2 * N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      p[i] = pack<T>(weights[2 * i], weights[2 * i + 1]);
      mass[i % 2] += sum_of_two<T>(p[i]);
    }
  }

  // To change the base of O takes as long as a part of a product: only when some row needs it.
  template <int N>
  __device__ __forceinline__ void rescale(float (&o)[N]) const {
    if (!__any_sync(kAllLanes, shrink[0] != 1.f || shrink[1] != 1.f)) return;
#pragma unroll
    for (int i = 0; i < N; ++i) o[i] *= shrink[row_of(i)];
  }

  // Of rows `first` and `first` + 8, with o of the first `dim` columns where there is one.
  template <int N>
  __device__ __forceinline__ void write(const Partial& to, int part, int first,
                                        index_t rows, int dim, const float (&o)[N]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int e = 0; e < E; ++e) {
        total[e][r] = over_lanes<4>(total[e][r], Plus());
        if (FULL) moment[e][r] = over_lanes<4>(moment[e][r], Plus());
      }
      mass[r] = over_lanes<4>(mass[r], Plus());
      count[r] = over_lanes<4>(count[r], Plus());
      const int row = first + 8 * r;
      if (row >= rows) continue;
      const index_t slot = index_t(part) * rows + row;
      if (lane % 4 == 0) {
        write_sums<FULL>(to, want.exponents, part, rows, row, r, peak, count, index, total, moment);
        if (N > 1) to.mass[slot] = mass[r];
      }
      if constexpr (N > 1) {
#pragma unroll
        for (int n = 0; n < N / 4; ++n) {
          const int column = n * 8 + lane % 4 * 2;
          if (column < dim)
            *reinterpret_cast<float2*>(to.acc + slot * dim + column) =
                make_float2(o[n * 4 + 2 * r], o[n * 4 + 2 * r + 1]);
        }
      }
    }
  }
};

}  // namespace sede_cuda
