// The one register tile of every product here: C[r][c] (+)= sum_k A[r][k] B[k][c], with A broadcast
// element by element from any strides and B read as contiguous vectors.
#pragma once

#include "pairs.h"

namespace sede {
namespace SEDE_ISA {
namespace {

// C: R rows of V vectors. `add` false overwrites C.
template <class T, int R, int V, class S = typename Arithmetic<T>::Sum>
SEDE_INLINE void tile(const T* a, index_t a_row, index_t a_step, const T* b, index_t b_step, S* c,
                      index_t c_row, index_t steps, bool add) {
  if constexpr (kMatrixSteps<T>)
    return matrix_tile<R, V>(a, a_row, a_step, b, b_step, c, c_row, steps, add);
  using Math = Arithmetic<T>;
  using SumVec = typename Math::SumVec;
  constexpr int W = Simd<T>::width;
  SumVec sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v] = SumVec{};
  for (index_t k = 0; k < steps; ++k) {
    typename Math::Vec right[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) right[v] = load<typename Math::Vec>(b + v * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const T left = a[r * a_row];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) Math::add(sum[r][v], left, right[v]);
    }
    a += a_step;
    b += b_step;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      S* out = c + r * c_row + v * W;
      store(out, add ? load<SumVec>(out) + sum[r][v] : sum[r][v]);
    }
}

// One tile of 1 to kTileRows rows, and no more of them than there are.
template <class T, int V, class S>
void tile_rows(index_t rows, const T* a, index_t a_row, index_t a_step, const T* b, index_t b_step,
               S* c, index_t c_row, index_t steps, bool add) {
  auto take = [&](auto count) {
    tile<T, decltype(count)::value, V>(a, a_row, a_step, b, b_step, c, c_row, steps, add);
  };
  if (rows >= kTileRows) return take(std::integral_constant<int, kTileRows>());
  if constexpr (kTileRows > 4) switch (rows) {
      case 7: return take(std::integral_constant<int, 7>());
      case 6: return take(std::integral_constant<int, 6>());
      case 5: return take(std::integral_constant<int, 5>());
      case 4: return take(std::integral_constant<int, 4>());
      default: break;
    }
  switch (rows) {
    case 3: return take(std::integral_constant<int, 3>());
    case 2: return take(std::integral_constant<int, 2>());
    default: return take(std::integral_constant<int, 1>());
  }
}

// Work on what will be needed next, done a little at each register tile: memory fetched into L2, or
// columns copied. All at once, the fetches would wait for each other, and the arithmetic for them.
struct Ahead {
  const char* at;      // where the next line lies
  index_t left, run;   // lines left of this run of memory, and of each run
  index_t step, runs;  // bytes between the ends of runs, and how many more runs there are
  index_t lines;       // a register tile
  bool spread;         // within it, where it has a place for that
  void (*more)(void* self, index_t columns);
  void* self;
  index_t columns;  // a register tile
  // Rows read where they lie: so many bytes ahead, up to here, instead of all of the above. 0: not so.
  index_t near;
  const char* stop;

  SEDE_INLINE void fetch(index_t count) {
    while (count > 0) {
      if (left == 0) {
        if (runs == 0) return;
        --runs, left = run, at += step;
      }
      const index_t some = count < left ? count : left;
      const char* line = at;
      for (index_t n = 0; n < some; ++n, line += 64) __builtin_prefetch(line, 0, 2);
      at = line, left -= some, count -= some;
    }
  }
  SEDE_INLINE void some() {
    if (more) return more(self, columns);
    fetch(lines);
  }
  // The rest of what is to be fetched.
  void all() { fetch(left + runs * run); }
};

// C[rows][columns] (+)= A B for any number of rows; columns is a multiple of the vector length.
// B's columns are walked outside, so that one slice of B stays in L1 for all rows of A.
template <class T, class S>
void product(index_t rows, index_t columns, const T* a, index_t a_row, index_t a_step, const T* b,
             index_t b_step, S* c, index_t c_row, index_t steps, bool add, Ahead* ahead = nullptr) {
  constexpr int W = Simd<T>::width, kWide = kTileRows;
  index_t column = 0;
  // One or two rows need more columns at once, or each sum waits for its last addition.
  for (; rows <= 2 && column + kWide * W <= columns; column += kWide * W) {
    if (ahead) ahead->some();
    if (rows == 2)
      tile<T, 2, kWide>(a, a_row, a_step, b + column, b_step, c + column, c_row, steps, add);
    else
      tile<T, 1, kWide>(a, a_row, a_step, b + column, b_step, c + column, c_row, steps, add);
  }
  for (; rows > 2 && rows <= 4 && column + kWide / 2 * W <= columns; column += kWide / 2 * W) {
    if (ahead) ahead->some();
    if (rows == 3)
      tile<T, 3, kWide / 2>(a, a_row, a_step, b + column, b_step, c + column, c_row, steps, add);
    else
      tile<T, 4, kWide / 2>(a, a_row, a_step, b + column, b_step, c + column, c_row, steps, add);
  }
  for (; column + kPanelVecs * W <= columns; column += kPanelVecs * W)
    for (index_t r = 0; r < rows; r += kTileRows) {
      if (ahead) ahead->some();
      tile_rows<T, kPanelVecs>(rows - r, a + r * a_row, a_row, a_step, b + column, b_step,
                               c + r * c_row + column, c_row, steps, add);
    }
  for (; column < columns; column += W)
    for (index_t r = 0; r < rows; r += kTileRows) {
      if (ahead) ahead->some();
      tile_rows<T, 1>(rows - r, a + r * a_row, a_row, a_step, b + column, b_step,
                      c + r * c_row + column, c_row, steps, add);
    }
}

// Similarities of a bank tile with one panel of queries: panel[j][i] = sum_d bank[j][d] query[d][i],
// blocked over D so that the block of the packed query stays in L1. Bank element (j, d) lies at
// j bank_row + d bank_step.
template <class T, class S>
void similarities(const T* bank, index_t bank_row, index_t bank_step, index_t rows, const T* query,
                  index_t dim, index_t queries, index_t depth, S* panel, Ahead* ahead = nullptr) {
  constexpr index_t W = Simd<T>::width, P = kPanel<T>;
  const index_t columns = queries > W ? P : W;
  if (dim == 0)
    for (index_t n = 0; n < rows * P; ++n) panel[n] = S(0);
  for (index_t d = 0; d < dim; d += depth) {
    const index_t steps = dim - d < depth ? dim - d : depth;
    product(rows, columns, bank + d * bank_step, bank_row, bank_step, query + d * P, P, panel, P,
            steps, d > 0, ahead);
  }
}

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
