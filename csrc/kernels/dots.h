// Products with few queries, too few to fill a vector: lanes run along the dimension that is summed,
// and the sums of all lanes are taken together at the end.
#pragma once

#include "convert.h"
#include "gemm.h"

namespace sede {
namespace SEDE_ISA {
namespace {

// Up to so many queries this costs less than a vector of queries that is part empty.
template <class T>
constexpr index_t kFew = Simd<T>::width >= 8 ? Simd<T>::width * 3 / 4 : 0;

SEDE_INLINE VecI lanes_like(VecF) { return lane_numbers(); }
SEDE_INLINE VecL lanes_like(VecD) { return long_lane_numbers(); }

// Element (r, lane) of a block of vectors becomes (lane, r), in steps that swap blocks of STEP.
template <int STEP, class V>
SEDE_INLINE void exchange_all(V* v) {
  if constexpr (STEP > 0) {
    constexpr int width = sizeof(V) / sizeof(v[0][0]);
    const auto lane = lanes_like(V{});
    const auto upper = (lane & STEP) != 0;
#pragma GCC unroll 16
    for (int n = 0; n < width; ++n) {
      if (n & STEP) continue;
      const V x = v[n], y = v[n + STEP];
      v[n] = shuffle(x, y, upper ? (lane ^ STEP) + width : lane);
      v[n + STEP] = shuffle(x, y, upper ? lane + width : lane ^ STEP);
    }
    exchange_all<STEP / 2>(v);
  }
}

// Each lane's sum with the lane `step` away: of x in the lanes without that bit, of y in the others.
template <int STEP, class V>
SEDE_INLINE V fold(V x, V y) {
  constexpr int width = sizeof(V) / sizeof(x[0]);
  const auto lane = lanes_like(x);
  const auto from = ((lane & STEP) != 0) & width;
  return shuffle(x, y, lane + from) + shuffle(x, y, (lane ^ STEP) + from);
}

// Lane n of v[0] becomes the sum of all lanes of v[n % N]; N and STEP are powers of two.
template <int N, int STEP, class V>
SEDE_INLINE void fold_all(V* v) {
  if constexpr (STEP > 0) {
    constexpr int left = N < STEP ? N : STEP;
#pragma GCC unroll 16
    for (int n = 0; n < left; ++n) {
      if constexpr (N > STEP)
        v[n] = fold<STEP>(v[n], v[n + STEP]);
      else
        v[n] += exchange(v[n], STEP);
    }
    fold_all<left, STEP / 2>(v);
  }
}

// out[r][c] (+)= sum_k a[r][k] b[c][k] for R rows and C columns; `steps` elements, whole vectors. At each
// vector so many lines are fetched of what comes next, or with NEAR as many as are read, from `near` on.
template <class T, int R, int C, bool NEAR = false, class S = typename Arithmetic<T>::Sum>
SEDE_INLINE void dot_tile(const T* a, index_t a_row, const T* b, index_t b_row, index_t steps, S* out,
                          index_t out_row, index_t out_column, bool add, Ahead* ahead = nullptr,
                          index_t lines = 0, const char* near = nullptr) {
  using Math = Arithmetic<T>;
  using Vec = typename Math::Vec;
  using SumVec = typename Math::SumVec;
  constexpr int W = Simd<T>::width;
  SumVec sum[R * C];
#pragma GCC unroll 16
  for (int n = 0; n < R * C; ++n) sum[n] = SumVec{};
  for (index_t k = 0; k < steps; k += W) {
    if constexpr (NEAR) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) __builtin_prefetch(near + r * 64, 0, 2);
      near += R * 64;
    } else if (lines > 0) {
      ahead->fetch(lines);
    }
    Vec right[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) right[c] = load<Vec>(b + c * b_row + k);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec left = load<Vec>(a + r * a_row + k);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) Math::dot(sum[r * C + c], left, right[c]);
    }
  }
  fold_all<R * C, W / 2>(sum);
  S lanes[W];
  store(lanes, sum[0]);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    S* row = out + r * out_row;
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      S& x = row[c * out_column];
      x = add ? x + lanes[r * C + c] : lanes[r * C + c];
    }
  }
}

// Rows of a group of C columns that are taken at a time: their sums fill a vector.
template <class T>
constexpr index_t dot_rows(index_t columns) {
  return Simd<T>::width / columns < 8 ? Simd<T>::width / columns : 8;
}

// At least the register tiles of dots().
template <class T>
index_t dot_tiles(index_t rows, index_t columns) {
  index_t tiles = 1;
  for (index_t group = Simd<T>::width >= 16 ? 8 : Simd<T>::width / 2; group > 0; group /= 2)
    for (; columns >= group; columns -= group) tiles += (rows - 1) / dot_rows<T>(group) + 1;
  return tiles;
}

// out[r][c] (+)= sum_k a[r][k] b[c][k] for any number of rows and columns, element (r, c) of out at
// r out_row + c out_column. Sums that fill a vector are
// taken at a time, of eight rows at most. Eight rows serve all groups of columns before the next eight
// are read, where they and the columns fit into L1.
template <class T, class S>
void dots(index_t rows, index_t columns, const T* a, index_t a_row, const T* b, index_t b_row,
          index_t steps, S* out, index_t out_row, index_t out_column, bool add,
          Ahead* ahead = nullptr) {
  constexpr index_t W = Simd<T>::width, kRows = 8, kBytes = 32 << 10;
  const index_t lines = ahead && ahead->spread ? ahead->lines / ((steps - 1) / W + 1) + 1 : 0;
  const bool near = ahead && ahead->near > 0;
  index_t first, stop, c;
  auto take = [&](auto number) {
    constexpr int C = decltype(number)::value, R = int(dot_rows<T>(C));
    for (; columns - c >= C; c += C) {
      index_t r = first;
      for (; near && c == 0 && r + R <= stop; r += R) {
        const char* at = (const char*)(a + r * a_row);
        if (at + ahead->near < ahead->stop) at += ahead->near;
        dot_tile<T, R, C, true>(a + r * a_row, a_row, b, b_row, steps, out + r * out_row, out_row,
                                out_column, add, ahead, 0, at);
      }
      for (; r + R <= stop; r += R) {
        if (ahead && lines == 0) ahead->some();
        dot_tile<T, R, C>(a + r * a_row, a_row, b + c * b_row, b_row, steps,
                          out + r * out_row + c * out_column, out_row, out_column, add, ahead, lines);
      }
      for (; r < stop; ++r)
        dot_tile<T, 1, C>(a + r * a_row, a_row, b + c * b_row, b_row, steps,
                          out + r * out_row + c * out_column, out_row, out_column, add);
    }
  };
  const index_t block = (kRows + columns) * steps * index_t(sizeof(T)) <= kBytes ? kRows : rows;
  for (first = 0; first < rows; first = stop) {
    stop = first + block < rows ? first + block : rows;
    c = 0;
    if constexpr (W >= 16) take(std::integral_constant<int, 8>());
    if constexpr (W >= 8) take(std::integral_constant<int, 4>());
    if constexpr (W >= 4) take(std::integral_constant<int, 2>());
    take(std::integral_constant<int, 1>());
  }
}

// out[c][r] = in[r][c] for blocks of a vector's length: `rows` rows of `in` count, the others are taken
// as zero; `columns` is rounded up to whole blocks. Elements are moved, never computed with.
template <class V, class S>
void transpose(const S* in, index_t in_row, index_t rows, index_t columns, S* out, index_t out_row) {
  constexpr int W = sizeof(V) / sizeof(S);
  for (index_t c = 0; c < columns; c += W) {
    V v[W];
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r) v[r] = r < rows ? load<V>(in + r * in_row + c) : V{};
    exchange_all<W / 2>(v);
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r) store(out + (c + r) * out_row, v[r]);
  }
}

// out[r][c] = in[c][r] for the first `rows` lanes of `columns` vectors, whole blocks of them.
template <class V, class S>
void lanes_to_rows(const S* in, index_t in_row, index_t rows, index_t columns, S* out, index_t out_row) {
  constexpr int W = sizeof(V) / sizeof(S);
  for (index_t c = 0; c < columns; c += W) {
    V v[W];
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r) v[r] = load<V>(in + (c + r) * in_row);
    exchange_all<W / 2>(v);
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r)
      if (r < rows) store(out + r * out_row + c, v[r]);
  }
}

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
