// The core op on one block of queries and one slice of the bank, tile by tile.
#include "gemm.h"
#include "table.h"
#include "weigh.h"

namespace sede {
namespace SEDE_ISA {
namespace {

constexpr index_t kAlign = 64;
index_t aligned(index_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
index_t round_up(index_t n, index_t to) { return (n + to - 1) / to * to; }

// Scratch of a thread, carved from one allocation.
template <class T>
struct Scratch {
  T *bank, *panels[2], *limit;
  index_t* source;
  QueryIds<T> ids;
  index_t bank_stride, panel_size, bytes;

  Scratch(char* base, const BankLse& op, index_t queries, const Tiling& tiling) {
    using Scalar = typename Simd<T>::Scalar;
    constexpr index_t W = Simd<T>::width, P = kPanel<T>;
    const index_t capacity = round_up(tiling.bank_rows, kTileRows), lanes = round_up(queries, P);
    // One vector more than D needs: rows of a power-of-two length would share a cache set.
    bank_stride = round_up(op.bank.cols, W) + kAlign / index_t(sizeof(T));
    panel_size = capacity * P;
    index_t at = 0;
    auto take = [&](index_t size) {
      char* p = base ? base + at : nullptr;
      at += aligned(size);
      return p;
    };
    bank = (T*)take(capacity * bank_stride * index_t(sizeof(T)));
    for (int a = 0; a < 2; ++a) {
      const bool used = a == 0 || op.accumulators > 1;
      panels[a] = (T*)take(used ? lanes / P * panel_size * index_t(sizeof(T)) : 0);
    }
    limit = (T*)take(lanes * index_t(sizeof(T)));
    source = (index_t*)take(capacity * index_t(sizeof(index_t)));
    ids.low = (Scalar*)take(lanes * index_t(sizeof(Scalar)));
    ids.high = (Scalar*)take(lanes * index_t(sizeof(Scalar)));
    bytes = at;
  }
};

template <class T>
void start_state(const SliceState<T>& state, const BankLse& op) {
  for (index_t n = 0; n < state.padded; ++n) {
    state.reference[n] = kNegInf<T>;
    state.count[n] = 0;
    if (op.hardest) state.top[n] = kNegInf<T>, state.top_index[n] = -1;
  }
  for (index_t n = 0; n < state.padded * op.exponents; ++n) {
    state.sum[n] = T(0);
    if (op.moments) state.moment[n] = T(0);
  }
}

template <class T>
void slice(const SliceCall<T>& call) {
  constexpr index_t W = Simd<T>::width, P = kPanel<T>;
  const BankLse& op = *call.op;
  const index_t dim = op.bank.cols, columns = round_up(dim, W), queries = call.queries;
  Scratch<T> scratch(call.scratch, op, queries, call.tiling);
  BankTile<T> tile{scratch.bank, scratch.bank_stride, call.tiling.bank_rows, 0, scratch.source};

  Weigher<T> w;
  w.op = &op;
  w.query_begin = call.query_begin;
  w.queries = queries;
  w.bank_begin = call.bank_begin;
  w.tile = &tile;
  w.ids = scratch.ids;
  w.limit = op.limit ? scratch.limit : nullptr;
  w.state = call.state;
  w.largest = T(0);
  for (int e = 0; e < op.exponents; ++e) {
    w.exponent[e] = ((const T*)op.scales)[e] * T(1.44269504088896340736);
    w.largest = w.exponent[e] > w.largest ? w.exponent[e] : w.largest;
  }
  for (int a = 0; a < 2; ++a) w.acc[a] = call.acc[a];
  w.acc_stride = call.acc_stride;
  w.first = true;
  for (index_t i = 0; i < round_up(queries, P); ++i) {
    const bool real = i < queries;
    w.ids.set(i, real && op.query_ids ? op.query_ids[call.query_begin + i] : 0);
    scratch.limit[i] = real && op.limit ? ((const T*)op.limit)[call.query_begin + i] : T(0);
  }
  start_state(call.state, op);
  const WeighFn<T> weigh_lanes = pick_weigh(w);

  for (index_t next = call.bank_begin; next < call.bank_end;) {
    next = fill_tile(op, next, call.bank_end, tile);
    if (tile.count == 0) break;
    const index_t rows = round_up(tile.count, kTileRows);
    for (index_t q = 0; q < queries; q += P) {
      T* panel = scratch.panels[0] + q / P * scratch.panel_size;
      T* second = scratch.panels[1] + q / P * scratch.panel_size;
      similarities<T>(tile.rows, tile.stride, rows, (const T*)call.packed_query + q * dim, dim,
                      queries - q, call.tiling.depth, panel);
      for (index_t v = 0; v < P && q + v < queries; v += W)
        weigh_lanes(w, q + v, panel + v, second + v);
    }
    for (int a = 0; a < op.accumulators; ++a)
      for (index_t d = 0; d < columns; d += P)
        for (index_t q = 0; q < queries; q += P)
          product<T>(queries - q < P ? queries - q : P, columns - d < P ? columns - d : P,
                     scratch.panels[a] + q / P * scratch.panel_size, 1, P, tile.rows + d,
                     tile.stride, call.acc[a] + q * call.acc_stride + d, call.acc_stride,
                     tile.count, !w.first);
    w.first = false;
  }
  if (w.first)
    for (int a = 0; a < op.accumulators; ++a)
      for (index_t n = 0; n < queries * call.acc_stride; ++n) call.acc[a][n] = T(0);
}

template <class T>
index_t scratch_bytes(const BankLse& op, index_t queries, const Tiling& tiling) {
  return Scratch<T>(nullptr, op, queries, tiling).bytes;
}

template <class T>
void pack(const Matrix& m, index_t begin, index_t count, void* out) {
  pack_queries<T>(m, begin, count, (T*)out);
}

}  // namespace

const BankOps<float> bank_f32 = {kPanel<float>, Simd<float>::width, 4, pack<float>,
                                 scratch_bytes<float>, slice<float>};
const BankOps<double> bank_f64 = {kPanel<double>, Simd<double>::width, 8, pack<double>,
                                  scratch_bytes<double>, slice<double>};

}  // namespace SEDE_ISA
}  // namespace sede
