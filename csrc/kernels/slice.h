// What the kernels that walk a slice of the bank share: scratch memory and the set-up of its state.
#pragma once

#include "gemm.h"
#include "table.h"
#include "weigh.h"

namespace sede {
namespace SEDE_ISA {
namespace {

constexpr index_t kAlign = 64;
SEDE_INLINE index_t aligned(index_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }
SEDE_INLINE index_t round_up(index_t n, index_t to) { return (n + to - 1) / to * to; }

// Hands out pieces of one allocation; without one it only counts.
struct Carver {
  char* base;
  index_t at = 0;

  template <class T>
  void take(T*& out, index_t count) {
    out = base ? (T*)(base + at) : nullptr;
    at += aligned(count * index_t(sizeof(T)));
  }
};

// Elements of one row of a bank tile. One cache line more than D needs: rows of a power-of-two
// length would share a cache set.
template <class T>
index_t tile_stride(index_t dim) {
  return round_up(dim, Simd<T>::width) + kAlign / index_t(sizeof(T));
}

// Rows of a bank tile are padded to a multiple of this: whole vectors of any kind, or pairs of them.
constexpr index_t kCapacity = 2 * SEDE_VEC_BYTES / 4;

// What every such kernel needs of a thread, T being the type of the sums.
template <class T>
struct Scratch {
  T *panels[2], *limit;
  index_t* source;
  QueryIds<T> ids;
  index_t capacity, panel_size;

  Scratch(Carver& carver, const BankLse& op, index_t queries, const Tiling& tiling) {
    constexpr index_t P = kPanel<T>;
    const index_t lanes = round_up(queries, P);
    capacity = round_up(tiling.bank_rows, kCapacity);
    panel_size = capacity * P;
    for (int a = 0; a < 2; ++a)
      carver.take(panels[a], a == 0 || op.accumulators > 1 ? lanes / P * panel_size : 0);
    carver.take(limit, lanes);
    carver.take(source, capacity);
    carver.take(ids.low, lanes);
    carver.take(ids.high, lanes);
  }

  // Ids and limits of `queries` queries from `begin` on.
  void set_queries(const BankLse& op, index_t begin, index_t queries) {
    for (index_t i = 0; i < round_up(queries, kPanel<T>); ++i) {
      const bool real = i < queries;
      ids.set(i, real && op.query_ids ? op.query_ids[begin + i] : 0);
      limit[i] = real && op.limit ? ((const T*)op.limit)[begin + i] : T(0);
    }
  }
};

// A weigher for queries from `begin` on, with the scratch's ids and limits set for them.
template <class T>
Weigher<T> make_weigher(const BankLse& op, Scratch<T>& scratch, const BankTile<T>* tile,
                        index_t begin, index_t queries, index_t bank_begin) {
  Weigher<T> w{};
  w.op = &op;
  w.query_begin = begin;
  w.queries = queries;
  w.bank_begin = bank_begin;
  w.tile = tile;
  w.ids = scratch.ids;
  w.limit = op.limit ? scratch.limit : nullptr;
  for (int e = 0; e < op.exponents; ++e) {
    w.exponent[e] = ((const T*)op.scales)[e] * T(1.44269504088896340736);
    w.largest = w.exponent[e] > w.largest ? w.exponent[e] : w.largest;
  }
  w.first = true;
  scratch.set_queries(op, begin, queries);
  return w;
}

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
  for (index_t n = 0; n < state.padded * op.accumulators; ++n) state.mass[n] = T(0);
}

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
