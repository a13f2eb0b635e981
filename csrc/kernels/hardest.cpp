// The k most similar valid rows of a bank slice for each query, kept in a heap a query.
#include "slice.h"

namespace sede {
namespace SEDE_ISA {
namespace {

// A heap with the candidate that leaves first at its root: the smallest value, and among equals the
// highest index. NaN counts as the largest value, as in a descending sort.
template <class T>
struct Heap {
  T* values;
  index_t* indices;
  index_t size, capacity;

  static bool less(T a, T b) { return a < b || (b != b && a == a); }
  // Whether (v, i) leaves before (w, j).
  static bool worse(T v, index_t i, T w, index_t j) {
    return less(v, w) || (!less(w, v) && i > j);
  }
  bool worse_at(index_t a, index_t b) const {
    return worse(values[a], indices[a], values[b], indices[b]);
  }
  void swap(index_t a, index_t b) {
    const T value = values[a];
    const index_t index = indices[a];
    values[a] = values[b], indices[a] = indices[b];
    values[b] = value, indices[b] = index;
  }

  void offer(T value, index_t index) {
    index_t at;
    if (size < capacity) {
      at = size++;
      values[at] = value, indices[at] = index;
      for (; at > 0 && worse_at(at, (at - 1) / 2); at = (at - 1) / 2) swap(at, (at - 1) / 2);
      return;
    }
    if (!worse(values[0], indices[0], value, index)) return;
    values[0] = value, indices[0] = index;
    at = 0;
    for (;;) {
      index_t next = at;
      for (index_t child = 2 * at + 1; child <= 2 * at + 2 && child < size; ++child)
        if (worse_at(child, next)) next = child;
      if (next == at) return;
      swap(at, next);
      at = next;
    }
  }
};

// Lanes that beat `floor` (the root of a full heap, else -inf) are offered one by one; they get rare
// as the heaps fill.
template <class T>
void collect(const Weigher<T>& w, index_t lane, const T* panel, bool filter, Heap<T>* heaps) {
  using Vec = typename Simd<T>::Vec;
  using Int = typename Simd<T>::Int;
  constexpr index_t P = kPanel<T>;
  Vec floor;
  for (int n = 0; n < Simd<T>::width; ++n) {
    const Heap<T>& heap = heaps[lane + n];
    floor[n] = heap.capacity == 0           ? -kNegInf<T>  // a lane beyond the last query
               : heap.size < heap.capacity ? kNegInf<T>
                                           : heap.values[0];
  }
  for (index_t j = 0; j < w.tile->count; ++j) {
    const index_t row = w.tile->source[j];
    Vec s = load<Vec>(panel + j * P);
    if (w.op->row_scale) s *= T(w.op->row_scale[row]);
    Int better = (s > floor) | (s != s);
    if (filter) better &= w.valid(lane, row, s);
    if (!any(better)) continue;
    for (int n = 0; n < Simd<T>::width; ++n) {
      Heap<T>& heap = heaps[lane + n];
      if (!better[n] || heap.capacity == 0) continue;
      heap.offer(s[n], row);
      if (heap.size == heap.capacity) floor[n] = heap.values[0];
    }
  }
}

template <class T>
Heap<T>* carve_heaps(Carver& carver, index_t queries) {
  Heap<T>* heaps;
  carver.take(heaps, round_up(queries, kPanel<T>));
  return heaps;
}

template <class T>
void slice(const HardestCall<T>& call) {
  constexpr index_t W = Simd<T>::width, P = kPanel<T>;
  const BankLse& op = *call.op;
  const index_t dim = op.bank.cols, queries = call.queries;
  Carver carver{call.scratch};
  Scratch<T> scratch(carver, op, queries, call.tiling);
  BankTile<T> tile{nullptr, tile_stride<T>(dim), call.tiling.bank_rows, 0, scratch.source};
  carver.take(tile.rows, scratch.capacity * tile.stride);
  Heap<T>* heaps = carve_heaps<T>(carver, queries);
  for (index_t i = 0; i < round_up(queries, P); ++i) {
    const bool real = i < queries;
    heaps[i] = {real ? call.values + i * call.k : nullptr,
                real ? call.indices + i * call.k : nullptr, 0, real ? call.k : 0};
  }
  const Weigher<T> w =
      make_weigher(op, scratch, &tile, call.query_begin, queries, call.bank_begin);
  for (index_t next = call.bank_begin; next < call.bank_end;) {
    next = fill_tile(op, next, call.bank_end, tile);
    if (tile.count == 0) break;
    Ahead ahead = next_tile<T>(call, next, dim);
    for (index_t q = 0; q < queries; q += P) {
      similarities(tile.rows, tile.stride, round_up(tile.count, kTileRows),
                   (const T*)call.packed_query + q * dim, dim, queries - q, call.tiling.depth,
                   scratch.panels[0], &ahead);
      for (index_t v = 0; v < P && q + v < queries; v += W)
        collect(w, q + v, scratch.panels[0] + v, w.filters(), heaps);
    }
  }
  for (index_t i = 0; i < queries; ++i) call.found[i] = heaps[i].size;
}

template <class T>
index_t scratch_bytes(const BankLse& op, index_t queries, const Tiling& tiling) {
  Carver carver{nullptr};
  const Scratch<T> scratch(carver, op, queries, tiling);
  T* rows;
  carver.take(rows, scratch.capacity * tile_stride<T>(op.bank.cols));
  carve_heaps<T>(carver, queries);
  return carver.at;
}

}  // namespace

const HardestOps<float> hardest_f32 = {scratch_bytes<float>, slice<float>};
const HardestOps<double> hardest_f64 = {scratch_bytes<double>, slice<double>};

}  // namespace SEDE_ISA
}  // namespace sede
