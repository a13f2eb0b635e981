// A tile of the bank as both products take it. A bank that lies as rows becomes dense rows, one that
// lies as columns, as (D, K), dense columns; nothing is transposed. E is the element of the products:
// the type of the sums, or a pair of bf16 values.
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

// Rows of a tile whose columns are copied. A tile that is read where it lies may have more.
SEDE_INLINE index_t copied_rows(index_t capacity) { return capacity < 128 ? capacity : 128; }

// What the products take: element (j, step) of S's factor lies at j * s_row + step * s_step. The factor
// of the other product has rows of `o_row` elements: along D, one for each row (or pair of rows) of the
// bank, or along the bank, one for each column. Columns have two memories: one tile is copied while
// another is worked on.
template <class E>
struct Operands {
  const E *s, *o;
  index_t s_row, s_step, o_row;
  bool columns;
  bool readable;  // columns: the products can take them from the bank itself
  bool lies;      // rows: the tile is read where it lies

  // `few`: all queries of the block are taken as rows, in one register tile.
  Operands(Carver& carver, const BankLse& op, index_t capacity, bool few_)
      : columns(lies_in_columns(op.bank)), lies(false), writing(0), few(few_) {
    constexpr index_t W = Simd<E>::width, kPage = 4096;
    const Matrix& m = op.bank;
    const bool same = m.dtype == (sizeof(E) == 8 ? DType::f64 : DType::f32);
    // Rows a page apart would share cache sets.
    in_place = (few || op.accumulators == 0) && same && m.col_stride == 1 && m.cols % W == 0 &&
               m.row_stride * index_t(sizeof(E)) % kPage != 0;
    readable = columns && same;
    tile_row = tile_stride<E>(columns ? copied_rows(capacity) : m.cols);
    for (E*& one : memory) carver.take(one, columns ? tile_row * m.cols : 0);
    if (!columns) carver.take(memory[0], tile_row * capacity);
    s_row = columns ? 1 : tile_row;
    s_step = columns ? tile_row : 1;
    o_row = tile_row;
  }

  void start(const Matrix&) {}

  void fill(const Matrix& m, BankTile<E>& tile) {
    lies = in_place && tile.dense() && (few || tile.count % kTileRows == 0);
    if (lies) {
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
    s_step = o_row = tile_row;
    writing ^= 1;
  }

  // The tile's columns where they lie.
  void point(const Matrix& m, const BankTile<E>& tile) {
    s = o = (const E*)m.data + tile.source[0];
    s_step = o_row = m.col_stride;
  }
  // out[q][j] (+)= sum of columns from .. to, for queries as rows.
  void add_similarities(const Matrix&, index_t from, index_t to, index_t rows, const E* few,
                        index_t few_stride, index_t queries, E* out, index_t out_row) const {
    product(queries, rows, few + from, few_stride, 1, s + from * s_step, s_step, out, out_row, to - from,
            from > 0);
  }

 private:
  E* memory[2];
  int writing;
  bool few, in_place;
  index_t tile_row;
};

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
