// A tile of the bank and its similarities with a block of queries.
#pragma once

#include "operands.h"

namespace sede {
namespace SEDE_ISA {
namespace {

// Columns that both products of few queries take at a time: so many runs of memory are read at once.
constexpr index_t kColumns = 16;

// Rows that are read where they lie are fetched so far ahead: long enough for memory to answer, and
// little of a slice begins unfetched.
constexpr index_t kFetchedBytes = 16 << 10;

// Queries as elements: one of D, or a pair.
template <class E>
constexpr index_t kGroup = 1;
template <>
constexpr index_t kGroup<Pair> = 2;

template <class T>
void read_elements(const Matrix& query, index_t row, T* out) {
  read_row<T>(query, row, out, 1);
}

// A block's last queries, if they are few: see dots.h. They are taken as rows.
template <class E>
struct FewQueries {
  E* rows;
  index_t first, count, stride;  // from query `first` of the block on; count 0: none

  FewQueries(Carver& carver, index_t queries, index_t steps)
      : first(queries / Simd<E>::width * Simd<E>::width), count(queries - first) {
    if (count > kFew<E>) count = 0;
    stride = round_up(steps, Simd<E>::width) + kAlign / index_t(sizeof(E));
    carver.take(rows, kFew<E> * stride);  // the size of a block must not decide: the last is shorter
  }

  void read(const Matrix& query, index_t begin) {
    for (index_t n = 0; n < count * stride; ++n) rows[n] = E(0);
    for (index_t n = 0; n < count; ++n) read_elements(query, begin + first + n, rows + n * stride);
  }
};

template <class E>
struct Tiles {
  using T = typename Arithmetic<E>::Sum;
  static constexpr index_t W = Simd<E>::width, P = kPanel<E>;

  const BankLse& op;
  index_t queries;
  Tiling tiling;
  index_t steps;  // elements of a query
  Scratch<T> scratch;
  BankTile<T> tile;
  FewQueries<E> few;
  Operands<E> operands;
  T* few_rows;  // [kFew][few_stride] of S or P
  index_t few_stride;

  Tiles(Carver& carver, const BankLse& call, index_t queries_, const Tiling& tiling_)
      : op(call),
        queries(queries_),
        tiling(tiling_),
        steps((call.bank.cols + kGroup<E> - 1) / kGroup<E>),
        scratch(carver, call, queries, tiling),
        tile{nullptr, 0, tiling.bank_rows, 0, scratch.source},
        few(carver, queries, steps),
        operands(carver, call, scratch.capacity, few_only() && queries <= kTileRows),
        few_stride(tile_stride<T>(scratch.capacity)),
        coming(tile) {
    carver.take(few_rows, kFew<E> * few_stride);
    carver.take(coming.source, operands.columns ? scratch.capacity : 0);
  }

  // For queries from `query` on and bank rows begin .. end.
  void start(index_t query, index_t begin, index_t end_) {
    next = begin, end = end_;
    operands.start(op.bank);
    few.read(op.query, query);
    if (operands.columns && !few_alone()) await();
  }

  // All queries of the block are few.
  bool few_only() const { return few.count == queries; }
  // They are, and the bank lies as columns: it is read where it lies.
  bool few_alone() const { return operands.columns && few_only(); }

  // The next tile; false at the end.
  bool fill() {
    if (few_alone()) {
      next = gather_sources(op, next, end, tile);
      if (tile.count > 0) next = take_columns();
    } else if (operands.columns) {
      copy(op.bank.cols);
      const BankTile<T> copied = coming;
      coming.source = tile.source;
      tile = copied;
      if (tile.count > 0) operands.flip(), await();
    } else {
      next = gather_sources(op, next, end, tile);
      if (tile.count > 0) operands.fill(op.bank, tile);
    }
    return tile.count > 0;
  }

  // The next tile, fetched or copied a little at a time between the register tiles of this one.
  Ahead ahead() {
    const index_t panels = (queries - 1) / P + 1;
    const index_t calls = tiling.bank_rows / kTileRows * ((steps - 1) / tiling.depth + 1) * panels;
    const Matrix& m = op.bank;
    const index_t rows = end - next < tiling.bank_rows ? end - next : tiling.bank_rows;
    if (few_alone()) {
      // The first product waits for memory; pairs are formed in registers, which takes as long.
      if (kGroup<E> > 1 || op.accumulators == 0) return {};
      const index_t bytes = bytes_of(m.dtype), run = (rows * bytes + 63) / 64;
      const index_t tiles = op.accumulators * dot_tiles<E>(m.cols, few.count);
      return {(const char*)m.data + next * bytes, run, run, m.col_stride * bytes - run * 64,
              run > 0 ? m.cols - 1 : 0, m.cols * run / tiles + 1, false, nullptr, nullptr,
              0, 0, nullptr};
    }
    if (operands.columns) {
      const index_t others = op.accumulators * panels * (m.cols / kTileRows);
      auto more = [](void* self, index_t columns) { ((Tiles*)self)->copy(columns); };
      return {nullptr, 0, 0, 0, 0, 0, false, more, this, m.cols / (calls + others) + 1, 0, nullptr};
    }
    if (m.col_stride != 1 || m.row_stride != m.cols) return {};
    const index_t row = m.cols * bytes_of(m.dtype);
    // Without a second product memory is all that few queries wait for.
    const bool spread = few_only() && op.accumulators == 0;
    if (spread && operands.lies)
      return {nullptr, 0, 0, 0, 0, 0, false, nullptr, nullptr, 0, kFetchedBytes, (const char*)m.data + end * row};
    const index_t lines = (rows * row + 63) / 64, tiles = spread ? dot_tiles<E>(tile.count, few.count) : calls;
    return {(const char*)m.data + next * row, lines, 0, 0, 0, tiling.bank_rows * row / 64 / tiles + 1,
            spread, nullptr, nullptr, 0, 0, nullptr};
  }

  // Queries of the panel from q on that are taken in vectors.
  index_t whole(index_t q) const {
    const index_t left = (few.count ? few.first : queries) - q;
    return left < 0 ? 0 : left < P ? left : P;
  }
  // The lane of that panel at which the few begin, or -1.
  index_t few_lane(index_t q) const {
    return few.count && few.first >= q && few.first < q + P ? few.first - q : -1;
  }

  // Keeps a panel of s for a backward, at the places of its rows.
  void keep(index_t query, const T* panel) {
    T* kept = (T*)op.scores + query * op.bank.rows;
    for (index_t j = 0; j < tile.count; ++j)
      __builtin_memcpy(kept + tile.source[j] * P, panel + j * P, P * sizeof(T));
  }

  // panel[j][i] = s of the tile's row j and query q + i.
  void similarities(const void* packed, index_t q, T* panel, Ahead* ahead) {
    using Vec = typename Simd<T>::Vec;
    const E* s = operands.s;
    if (const index_t vectors = whole(q))
      SEDE_ISA::similarities(s, operands.s_row, operands.s_step, round_up(tile.count, kTileRows),
                             (const E*)packed + q * steps, steps, vectors, tiling.depth, panel, ahead);
    const index_t lane = few_lane(q);
    if (lane < 0) return;
    if (operands.columns) {
      if (few_alone())
        few_similarities(ahead);
      else
        product(few.count, round_up(tile.count, W), few.rows, few.stride, 1, s, operands.s_step, few_rows,
                few_stride, steps, false, ahead);
      transpose<Vec>(few_rows, few_stride, few.count, tile.count, panel + lane, P);
      return;
    }
    for (index_t j = 0; j < tile.count; ++j) store(panel + j * P + lane, Vec{});
    dots(tile.count, few.count, s, operands.s_row, few.rows, few.stride, round_up(steps, W),
         panel + lane, P, 1, false, ahead);
    if (ahead) ahead->all();
  }

  // few_rows[i][j] = s of the tile's row j and query i, where all queries are few.
  void few_similarities(Ahead* ahead) {
    if (operands.columns) {
      const index_t dim = op.bank.cols, columns = round_up(tile.count, W);
      for (index_t d = 0; d == 0 || d < dim; d += kColumns)
        operands.add_similarities(op.bank, d, d + kColumns < dim ? d + kColumns : dim, columns, few.rows,
                                  few.stride, few.count, few_rows, few_stride);
      return;
    }
    dots(tile.count, few.count, operands.s, operands.s_row, few.rows, few.stride, round_up(steps, W),
         few_rows, 1, few_stride, false, ahead);
    if (ahead) ahead->all();
  }

 private:
  BankTile<T> coming;  // columns: the tile that is being copied
  index_t next, end, copied;

  // As many of the chosen rows as one tile can have; returns the bank row to go on from.
  index_t take_columns() {
    const index_t whole = tile.count / kCapacity * kCapacity;
    const bool where_they_lie = operands.readable && tile.dense() && whole > 0;
    const index_t most = where_they_lie ? whole : copied_rows(scratch.capacity);
    if (tile.count > most) tile.count = most;
    if (where_they_lie) {
      operands.point(op.bank, tile);
    } else {
      operands.fill_part(op.bank, tile, 0, op.bank.cols);
      operands.flip();
    }
    return tile.source[tile.count - 1] + 1;
  }

  void await() {
    next = gather_sources(op, next, end, coming);
    copied = 0;
  }
  void copy(index_t columns) {
    if (coming.count == 0) return;
    const index_t to = op.bank.cols - copied < columns ? op.bank.cols : copied + columns;
    operands.fill_part(op.bank, coming, copied, to);
    copied = to;
  }
};

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
