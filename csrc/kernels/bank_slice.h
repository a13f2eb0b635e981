// The core op on one block of queries and one slice of the bank, tile by tile, for any arithmetic.
#pragma once

#include "tiles.h"

namespace sede {
namespace SEDE_ISA {
namespace {

// Weights [count][P] as elements of the other product, in place.
template <class T>
SEDE_INLINE void as_elements(T*, index_t, T*) {}

// acc = sum_j P_ij m_j of one slice. A bank in rows adds to the caller's rows; one in columns adds to
// columns, [D][lanes], which become rows at the end.
template <class E>
struct Sums {
  using T = typename Arithmetic<E>::Sum;
  using Vec = typename Simd<T>::Vec;
  static constexpr index_t W = Simd<E>::width, P = kPanel<E>;

  index_t dim, queries, lanes, padded;
  bool columns;
  T* acc[2];
  index_t acc_row;

  Sums(Carver& carver, const BankLse& op, index_t queries_)
      : dim(op.bank.cols),
        queries(queries_),
        lanes(round_up(queries_, P)),
        padded(round_up(dim, W)),
        columns(lies_in_columns(op.bank)) {
    for (int a = 0; a < 2; ++a) carver.take(acc[a], columns && a < op.accumulators ? padded * lanes : 0);
  }

  // Where the weigher finds and rescales them.
  void start(const SliceCall<T>& call, Weigher<T>& w) {
    acc_row = columns ? lanes : call.acc_stride;
    for (int a = 0; a < call.op->accumulators; ++a) {
      if (!columns) acc[a] = call.acc[a];
      w.acc[a] = acc[a];
    }
    w.acc_stride = columns ? 1 : acc_row;
    w.acc_step = columns ? acc_row : 1;
    w.acc_size = columns ? dim : padded;
  }

  // acc[a] (+)= P_a m. P_a lies in panels, element (i, j) at [j][i].
  void add(Tiles<E>& tiles, int a, bool add, Ahead* ahead) {
    const index_t steps = (tiles.tile.count + kGroup<E> - 1) / kGroup<E>;
    E* panels = (E*)tiles.scratch.panels[a];
    const index_t size = tiles.scratch.panel_size;
    if (columns)
      for (index_t q = 0; q < queries; q += P)
        add_columns(tiles, panels + q / P * size, q, steps, acc[a] + q, add, ahead);
    else
      add_rows(tiles.operands, panels, size, steps, acc[a], add);
  }

  void add_rows(const Operands<E>& bank, const E* panels, index_t size, index_t steps, T* out, bool add) {
    // One panel: product() walks the columns itself. Of several, a slice of the tile stays in L1 for all.
    const index_t width = queries <= P ? padded : P;
    for (index_t d = 0; d < padded; d += width)
      for (index_t q = 0; q < queries; q += P)
        product(queries - q < P ? queries - q : P, padded - d < width ? padded - d : width,
                panels + q / P * size, 1, P, bank.o + d, bank.o_row, out + q * acc_row + d, acc_row,
                steps, add);
  }

  void add_columns(Tiles<E>& tiles, E* panel, index_t q, index_t steps, T* out, bool add,
                   Ahead* ahead) {
    const Operands<E>& bank = tiles.operands;
    if (const index_t vectors = tiles.whole(q))
      product(dim, vectors > W ? P : W, bank.o, bank.o_row, 1, panel, P, out, lanes, steps, add, ahead);
    const index_t lane = tiles.few_lane(q);
    if (lane < 0) return;
    const index_t whole_steps = round_up(steps, W);
    for (index_t j = steps; j < whole_steps; ++j) store((T*)panel + j * P + lane, Vec{});
    lanes_to_rows<Vec>((const T*)panel + lane, P, tiles.few.count, steps, tiles.few_rows, tiles.few_stride);
    dots(dim, tiles.few.count, bank.o, bank.o_row, (const E*)tiles.few_rows, tiles.few_stride,
         whole_steps, out + lane, lanes, 1, add, ahead);
  }

  // Into the caller's rows.
  void finish(const SliceCall<T>& call, bool nothing) {
    for (int a = 0; a < call.op->accumulators; ++a) {
      T* out = call.acc[a];
      if (nothing)
        for (index_t n = 0; n < queries * call.acc_stride; ++n) out[n] = T(0);
      else if (columns)
        for (index_t q = 0; q < queries; q += W)
          lanes_to_rows<Vec>(acc[a] + q, lanes, queries - q < W ? queries - q : W, dim,
                             out + q * call.acc_stride, call.acc_stride);
    }
  }
};

template <class E>
void slice(const SliceCall<typename Arithmetic<E>::Sum>& call) {
  using T = typename Arithmetic<E>::Sum;
  constexpr index_t W = Simd<E>::width, P = kPanel<E>;
  const BankLse& op = *call.op;
  const index_t queries = call.queries;
  Carver carver{call.scratch};
  Tiles<E> tiles(carver, op, queries, call.tiling);
  Sums<E> sums(carver, op, queries);
  Weigher<T> w = make_weigher(op, tiles.scratch, &tiles.tile, call.query_begin, queries, call.bank_begin);
  w.state = call.state;
  sums.start(call, w);
  tiles.start(call.query_begin, call.bank_begin, call.bank_end);
  start_state(call.state, op);
  const WeighFn<T> weigh_lanes = pick_weigh<T, kGroup<E> == 2>(w);

  while (tiles.fill()) {
    const index_t count = tiles.tile.count;
    Ahead ahead = tiles.ahead();
    for (index_t q = 0; q < queries; q += P) {
      T* panel = tiles.scratch.panels[0] + q / P * tiles.scratch.panel_size;
      T* second = tiles.scratch.panels[1] + q / P * tiles.scratch.panel_size;
      tiles.similarities(call.packed_query, q, panel, &ahead);
      if (op.scores) tiles.keep(call.query_begin + q, panel);
      for (index_t v = 0; v < P && q + v < queries; v += W)
        weigh_lanes(w, q + v, panel + v, second + v);
      if (op.accumulators > 0) as_elements(panel, count, (E*)panel);
      if (op.accumulators > 1) as_elements(second, count, (E*)second);
    }
    for (int a = 0; a < op.accumulators; ++a) sums.add(tiles, a, !w.first, &ahead);
    w.first = false;
  }
  sums.finish(call, w.first);
}

template <class E>
index_t scratch_bytes(const BankLse& op, index_t queries, const Tiling& tiling) {
  Carver carver{nullptr};
  const Tiles<E> tiles(carver, op, queries, tiling);
  const Sums<E> sums(carver, op, queries);
  return carver.at;
}

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
