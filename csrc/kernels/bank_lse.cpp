// The core op on one block of queries and one slice of the bank, tile by tile, in fp32 or fp64.
#include <cstring>

#include "slice.h"

namespace sede {
namespace SEDE_ISA {
namespace {

template <class T>
void keep(const BankLse& op, const BankTile<T>& tile, index_t query, const T* panel) {
  constexpr index_t P = kPanel<T>;
  T* scores = (T*)op.scores + query * op.bank.rows;
  for (index_t j = 0; j < tile.count; ++j)
    std::memcpy(scores + tile.source[j] * P, panel + j * P, P * sizeof(T));
}

template <class T>
void slice(const SliceCall<T>& call) {
  constexpr index_t W = Simd<T>::width, P = kPanel<T>;
  const BankLse& op = *call.op;
  const index_t dim = op.bank.cols, queries = call.queries;
  Carver carver{call.scratch};
  Scratch<T> scratch(carver, op, queries, call.tiling);
  BankTile<T> tile{nullptr, tile_stride<T>(dim), call.tiling.bank_rows, 0, scratch.source};
  carver.take(tile.rows, scratch.capacity * tile.stride);

  Weigher<T> w = make_weigher(op, scratch, &tile, call.query_begin, queries, call.bank_begin);
  w.state = call.state;
  w.acc_stride = call.acc_stride;
  for (int a = 0; a < 2; ++a) w.acc[a] = call.acc[a];
  start_state(call.state, op);
  const WeighFn<T> weigh_lanes = pick_weigh(w);

  for (index_t next = call.bank_begin; next < call.bank_end;) {
    next = fill_tile(op, next, call.bank_end, tile);
    if (tile.count == 0) break;
    const index_t rows = round_up(tile.count, kTileRows);
    Ahead ahead = next_tile<T>(call, next, dim);
    for (index_t q = 0; q < queries; q += P) {
      T* panel = scratch.panels[0] + q / P * scratch.panel_size;
      T* second = scratch.panels[1] + q / P * scratch.panel_size;
      similarities(tile.rows, tile.stride, rows, (const T*)call.packed_query + q * dim, dim,
                   queries - q, call.tiling.depth, panel, &ahead);
      if (op.scores) keep(op, tile, call.query_begin + q, panel);
      for (index_t v = 0; v < P && q + v < queries; v += W)
        weigh_lanes(w, q + v, panel + v, second + v);
    }
    for (int a = 0; a < op.accumulators; ++a)
      accumulate(call, scratch.panels[a], scratch.panel_size, tile.rows, tile.stride, tile.count,
                 call.acc[a], !w.first);
    w.first = false;
  }
  if (w.first) clear_accumulators(call);
}

template <class T>
index_t scratch_bytes(const BankLse& op, index_t queries, const Tiling& tiling) {
  Carver carver{nullptr};
  const Scratch<T> scratch(carver, op, queries, tiling);
  T* rows;
  carver.take(rows, scratch.capacity * tile_stride<T>(op.bank.cols));
  return carver.at;
}

template <class T>
void pack(const Matrix& m, index_t begin, index_t count, void* out) {
  pack_queries<T>(m, begin, count, (T*)out);
}

}  // namespace

const BankOps<float> bank_f32 = {kPanel<float>, Simd<float>::width, 1, 4, pack<float>,
                                 scratch_bytes<float>, slice<float>};
const BankOps<double> bank_f64 = {kPanel<double>, Simd<double>::width, 1, 8, pack<double>,
                                  scratch_bytes<double>, slice<double>};

}  // namespace SEDE_ISA
}  // namespace sede
