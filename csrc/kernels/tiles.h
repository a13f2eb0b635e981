// A tile of the bank as both products take it, and its similarities with a block of queries. A bank
// that lies as rows becomes dense rows, one that lies as columns, as (D, K), dense columns; nothing is
// transposed. E is the element of the products: the type of the sums, or a pair of bf16 values.
#pragma once

#include "dots.h"
#include "slice.h"

namespace sede {
namespace SEDE_ISA {
namespace {

// The memory of the column so many on is fetched while one is copied.
constexpr index_t kColumnsAhead = 12;

template <class Out, class S>
SEDE_INLINE Out element(S x) {
  if constexpr (sizeof(Out) == 2)
    return bf16_bits(x);
  else
    return Out(widen(x));
}

// Columns from .. to of the tile that `tile` names: row_of(d)[n] = bank[source[n]][d], zero up to
// `padded`; after(d) is told when it is there.
template <class T, class S, class F, class G>
void fill_columns(const S* data, const Matrix& m, const BankTile<T>& tile, index_t from, index_t to,
                  index_t padded, F row_of, G after) {
  const index_t count = tile.count, begin = tile.source[0], span = tile.source[count - 1] - begin + 1;
  for (index_t d = from; d < to; ++d) {
    const S* in = data + d * m.col_stride + begin;
    // Past the last column, the next tile's first ones. Fetching beyond the bank does no harm.
    const bool past = d + kColumnsAhead >= m.cols;
    const index_t away = past ? (kColumnsAhead - m.cols) * m.col_stride + span : kColumnsAhead * m.col_stride;
    const std::uintptr_t at = std::uintptr_t(in) + std::uintptr_t(away * index_t(sizeof(S)));
    for (index_t n = 0; n < count * index_t(sizeof(S)); n += 64)
      __builtin_prefetch((const void*)(at + std::uintptr_t(n)), 0, 2);
    auto* out = row_of(d);
    using Out = std::remove_reference_t<decltype(*out)>;
    if (span == count)
      for (index_t n = 0; n < count; ++n) out[n] = element<Out>(in[n]);
    else
      for (index_t n = 0; n < count; ++n) out[n] = element<Out>(in[tile.source[n] - begin]);
    for (index_t n = count; n < padded; ++n) out[n] = Out(0);
    after(d);
  }
}

// What the products take: element (j, step) of S's factor lies at j * s_row + step * s_step. The factor
// of the other product has rows of `o_row` elements: along D, one for each row (or pair of rows) of the
// bank, or along the bank, one for each column. Columns have two memories: one tile is copied while
// another is worked on.
template <class E>
struct Operands {
  const E *s, *o;
  index_t s_row, s_step, o_row;
  bool columns;

  // `few`: all queries of the block are taken as rows, in one register tile.
  Operands(Carver& carver, const Matrix& m, index_t capacity, bool few)
      : columns(lies_in_columns(m)), writing(0) {
    constexpr index_t W = Simd<E>::width, kPage = 4096;
    const bool same = m.dtype == (sizeof(E) == 8 ? DType::f64 : DType::f32);
    // Rows a page apart would share cache sets.
    in_place = few && same && m.col_stride == 1 && m.cols % W == 0 &&
               m.row_stride * index_t(sizeof(E)) % kPage != 0;
    tile_row = tile_stride<E>(columns ? capacity : m.cols);
    for (E*& one : memory) carver.take(one, columns ? tile_row * m.cols : 0);
    if (!columns) carver.take(memory[0], tile_row * capacity);
    s_row = columns ? 1 : tile_row;
    s_step = columns ? tile_row : 1;
    o_row = tile_row;
  }

  void start(const Matrix&) {}

  void fill(const Matrix& m, BankTile<E>& tile) {
    if (in_place && tile.dense()) {
      s = o = (const E*)m.data + tile.source[0] * m.row_stride;
      s_row = o_row = m.row_stride;
      return;
    }
    tile.rows = memory[0];
    tile.stride = s_row = o_row = tile_row;
    s = o = memory[0];
    fill_rows(m, tile);
  }

  void fill_part(const Matrix& m, const BankTile<E>& tile, index_t from, index_t to) {
    E* out = memory[writing];
    with_type(m.dtype, m.data, [&](auto* data) {
      fill_columns(data, m, tile, from, to, round_up(tile.count, kCapacity),
                   [&](index_t d) { return out + d * tile_row; }, [](index_t) {});
    });
  }
  void flip() {
    s = o = memory[writing];
    writing ^= 1;
  }

 private:
  E* memory[2];
  int writing;
  bool in_place;
  index_t tile_row;
};

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
        operands(carver, call.bank, scratch.capacity, few.count == queries && queries <= kTileRows),
        few_stride(tile_stride<T>(scratch.capacity)),
        coming(tile) {
    carver.take(few_rows, operands.columns ? kFew<E> * few_stride : 0);
    carver.take(coming.source, operands.columns ? scratch.capacity : 0);
  }

  // For queries from `query` on and bank rows begin .. end.
  void start(index_t query, index_t begin, index_t end_) {
    next = begin, end = end_;
    operands.start(op.bank);
    few.read(op.query, query);
    if (operands.columns) await();
  }

  // The next tile; false at the end.
  bool fill() {
    if (operands.columns) {
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
    if (operands.columns) {
      const index_t others = op.accumulators * panels * (m.cols / kTileRows);
      auto more = [](void* self, index_t columns) { ((Tiles*)self)->copy(columns); };
      return {nullptr, nullptr, 0, more, this, m.cols / (calls + others) + 1};
    }
    if (m.col_stride != 1 || m.row_stride != m.cols) return {};
    const index_t row = m.cols * bytes_of(m.dtype);
    const index_t rows = end - next < tiling.bank_rows ? end - next : tiling.bank_rows;
    const char* at = (const char*)m.data + next * row;
    return {at, at + rows * row, tiling.bank_rows * row / 64 / calls + 1, nullptr, nullptr, 0};
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
      product(few.count, round_up(tile.count, W), few.rows, few.stride, 1, s, operands.s_step,
              few_rows, few_stride, steps, false, ahead);
      transpose<Vec>(few_rows, few_stride, few.count, tile.count, panel + lane, P);
      return;
    }
    for (index_t j = 0; j < tile.count; ++j) store(panel + j * P + lane, Vec{});
    dots(tile.count, few.count, s, operands.s_row, few.rows, few.stride, round_up(steps, W),
         panel + lane, P, false, ahead);
    if (ahead) ahead->all();
  }

 private:
  BankTile<T> coming;  // columns: the tile that is being copied
  index_t next, end, copied;

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
