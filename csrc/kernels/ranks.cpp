// Similarities of a block of queries with a bank slice, written or counted. Each is one chain of
// multiply-adds over D, wherever it lies in a tile: equal rows have equal similarities to the bit, so
// that a tie is seen as one.
#include "convert.h"
#include "ranks_api.h"
#include "table.h"
#include "tiles.h"

namespace sede {
namespace SEDE_ISA {
namespace {

// Whole vectors: a few queries taken as rows would be summed in another order.
template <class T>
index_t lanes_of(index_t queries) {
  return round_up(queries, Simd<T>::width);
}

// What a block of queries is compared with, and how many lay below, by lane.
template <class T>
struct Bars {
  T* query;
  typename Simd<T>::Scalar* below;

  Bars(Carver& carver, index_t queries) {
    const index_t lanes = round_up(queries, kPanel<T>);
    carver.take(query, lanes);
    carver.take(below, lanes);
  }

  void start(const RankCall<T>& call) {
    for (index_t i = 0; i < round_up(call.queries, kPanel<T>); ++i) {
      query[i] = i < call.queries ? call.query_bar[call.query_begin + i] : T(0);
      below[i] = 0;
    }
  }
};

// One panel of s, of `queries` queries in its lanes, from lane `first` of the block on. NaN is not below.
template <class T>
void count(const RankCall<T>& call, const BankTile<T>& tile, const T* panel, index_t first,
           index_t queries, const Bars<T>& bars) {
  using Vec = typename Simd<T>::Vec;
  using Int = typename Simd<T>::Int;
  constexpr index_t P = kPanel<T>, W = Simd<T>::width;
  Vec bar[kPanelVecs];
  Int below[kPanelVecs];
  unsigned real[kPanelVecs];
#pragma GCC unroll 2
  for (int v = 0; v < kPanelVecs; ++v) {
    bar[v] = load<Vec>(bars.query + first + v * W);
    below[v] = load<Int>(bars.below + first + v * W);
    const index_t lanes = queries - v * W;
    real[v] = lanes >= W ? ~0u >> (32 - W) : lanes > 0 ? (1u << lanes) - 1 : 0;
  }
  for (index_t j = 0; j < tile.count; ++j) {
    const T row_bar = call.bank_bar[tile.source[j]];
    index_t found = 0;
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVecs; ++v) {
      const Vec s = load<Vec>(panel + j * P + v * W);
      below[v] -= (Int)(s < bar[v]);
      found += __builtin_popcount(lane_bits((Int)(s < row_bar)) & real[v]);
    }
    call.bank_below[tile.source[j] - call.bank_begin] += found;
  }
#pragma GCC unroll 2
  for (int v = 0; v < kPanelVecs; ++v) store(bars.below + first + v * W, below[v]);
}

template <class T>
void slice(const RankCall<T>& call) {
  constexpr index_t P = kPanel<T>;
  const BankLse& op = *call.op;
  Carver carver{call.scratch};
  Tiles<T> tiles(carver, op, lanes_of<T>(call.queries), call.tiling);
  Bars<T> bars(carver, call.queries);
  T* panel = tiles.scratch.panels[0];
  tiles.start(call.query_begin, call.bank_begin, call.bank_end);
  if (!call.scores) {
    bars.start(call);
    for (index_t j = 0; j < call.bank_end - call.bank_begin; ++j) call.bank_below[j] = 0;
  }
  while (tiles.fill()) {
    Ahead ahead = tiles.ahead();
    for (index_t q = 0; q < call.queries; q += P) {
      tiles.similarities(call.packed_query, q, panel, &ahead);
      const index_t queries = call.queries - q < P ? call.queries - q : P;
      if (!call.scores) {
        count(call, tiles.tile, panel, q, queries, bars);
        continue;
      }
      for (index_t j = 0; j < tiles.tile.count; ++j)
        __builtin_memcpy(call.scores + tiles.tile.source[j] * op.query.rows + call.query_begin + q,
                         panel + j * P, std::size_t(queries) * sizeof(T));
    }
  }
  if (!call.scores)
    for (index_t i = 0; i < call.queries; ++i) call.query_below[i] = bars.below[i];
}

template <class T>
index_t scratch_bytes(const BankLse& op, index_t queries, const Tiling& tiling) {
  Carver carver{nullptr};
  const Tiles<T> tiles(carver, op, lanes_of<T>(queries), tiling);
  const Bars<T> bars(carver, queries);
  return carver.at;
}

}  // namespace

const RankOps<float> ranks_f32 = {scratch_bytes<float>, slice<float>};
const RankOps<double> ranks_f64 = {scratch_bytes<double>, slice<double>};

}  // namespace SEDE_ISA
}  // namespace sede
