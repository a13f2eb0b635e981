// The k most similar valid rows of a bank slice for each query: a buffer of candidates a query, cut
// back to the k largest whenever it is full. What does not beat the k-th largest of the last cut costs
// one comparison. NaN is no candidate.
#include "convert.h"
#include "ordered.h"
#include "pair_operands.h"

namespace sede {
namespace SEDE_ISA {
namespace {

template <class Key>
SEDE_INLINE void swap(Key& a, Key& b) {
  const Key key = a;
  a = b, b = key;
}

// The `kept` largest of `count` distinct keys come first, in any order.
template <class Key>
void keep_largest(Key* keys, index_t count, index_t kept) {
  index_t begin = 0, end = count;
  std::uint32_t draw = 1;
  while (end - begin > 1) {
    // The median of three drawn keys: no order of the rows makes this slow.
    auto drawn = [&] {
      draw = draw * 747796405u + 2891336453u;
      return begin + index_t(std::uint64_t(draw) * std::uint64_t(end - begin) >> 32);
    };
    const index_t a = drawn(), b = drawn(), c = drawn();
    const Key x = keys[a], y = keys[b], z = keys[c];
    const index_t middle = (x < y) == (y < z) ? b : (x < y) == (z < x) ? a : c;
    const Key pivot = keys[middle];
    swap(keys[middle], keys[end - 1]);
    index_t larger = begin;  // where the keys above the pivot end
    for (index_t n = begin; n < end - 1; ++n) {
      const Key key = keys[n];
      keys[n] = keys[larger];
      keys[larger] = key;
      larger += key > pivot;
    }
    swap(keys[larger], keys[end - 1]);
    if (larger == kept || larger + 1 == kept) return;
    if (larger < kept)
      begin = larger + 1;
    else
      end = larger;
  }
}

// A little less than x, so that x itself lies above.
template <class T>
T below(T x) {
  const T most = sizeof(T) == 4 ? T(3.4028234663852886e38) : T(1.7976931348623157e308);
  if (x > most) return most;
  return x - (x < 0 ? -x : x) * T(1e-6) - T(1e-30);
}

template <class T>
struct Selection {
  using Order = Ordered<T>;
  using Key = typename Order::Key;
  using Value = typename Order::Value;
  using Scalar = typename Simd<T>::Scalar;

  Key* keys;       // [lanes][capacity]
  index_t* sizes;  // [lanes]
  T* floors;       // [lanes]: what a similarity must exceed
  Scalar* best;    // [lanes]: with k = 1 the row of that similarity, from the slice's first on
  index_t k, capacity;
  Value* bounds;   // [queries] of the call: order of a similarity that k rows of some slice reach

  Selection(Carver& carver, index_t queries, index_t k_, index_t capacity_)
      : k(k_), capacity(capacity_), bounds(nullptr) {
    const index_t lanes = round_up(queries, kPanel<T>);
    carver.take(keys, lanes * capacity);
    carver.take(sizes, lanes);
    carver.take(floors, lanes);
    carver.take(best, lanes);
  }

  void start(Value* shared, index_t queries) {
    bounds = shared;
    for (index_t i = 0; i < round_up(queries, kPanel<T>); ++i) {
      sizes[i] = 0;
      floors[i] = -kNegInf<T>;  // nothing for a lane beyond the last query
      if (i < queries) floors[i] = kNegInf<T>;
      if (i < queries && k > 1) raise(i);
    }
  }

  // Other slices' k-th largest bounds this one's from below: a lower row may equal it.
  void raise(index_t lane) {
    const Value bound = __atomic_load_n(bounds + lane, __ATOMIC_RELAXED);
    if (bound > Order::order(floors[lane])) floors[lane] = below(Order::value(bound));
  }

  __attribute__((noinline)) void cut(index_t lane) {
    Key* all = keys + lane * capacity;
    keep_largest(all, sizes[lane], k);
    sizes[lane] = k;
    Key least = all[0];
    for (index_t n = 1; n < k; ++n) least = all[n] < least ? all[n] : least;
    const Value reached = Order::head(least);
    floors[lane] = Order::value(reached);
    raise(lane);
    Value bound = __atomic_load_n(bounds + lane, __ATOMIC_RELAXED);
    while (bound < reached && !__atomic_compare_exchange_n(bounds + lane, &bound, reached, true,
                                                           __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }

  // The best rows become candidates.
  void take_best(index_t begin, index_t queries) {
    for (index_t i = 0; i < queries; ++i) {
      sizes[i] = floors[i] > kNegInf<T>;
      if (sizes[i]) keys[i * capacity] = Order::key(floors[i], begin + std::uint32_t(best[i]));
    }
  }

  SEDE_INLINE void push(index_t lane, T value, index_t row) {
    keys[lane * capacity + sizes[lane]] = Order::key(value, row);
    if (++sizes[lane] == capacity) cut(lane);
  }
};

// Four rows are compared at once: as the floors rise, hardly any passes. ONE: k is 1, and the row that
// passes is the best so far.
template <class T, bool ONE>
void collect(const Weigher<T>& w, index_t lane, const T* panel, bool filter, Selection<T>& found) {
  using Vec = typename Simd<T>::Vec;
  using Int = typename Simd<T>::Int;
  constexpr index_t P = kPanel<T>, W = Simd<T>::width, kRows = 4;
  const index_t count = w.tile->count, *source = w.tile->source;
  const float* row_scale = w.op->row_scale;
  for (index_t j = 0; j < count; j += kRows) {
    const index_t rows = count - j < kRows ? count - j : kRows;
    Vec floor = load<Vec>(found.floors + lane);
    Vec s[kRows];
    unsigned above[kRows], some = 0;
#pragma GCC unroll 4
    for (index_t r = 0; r < kRows; ++r) {
      s[r] = load<Vec>(panel + (j + r) * P);
      if (row_scale) s[r] *= T(row_scale[source[r < rows ? j + r : j]]);
      above[r] = r < rows ? lane_bits((Int)(s[r] > floor)) : 0;
      some |= above[r];
    }
    if (!some) continue;
    Int best = ONE ? load<Int>(found.best + lane) : Int{};
    for (index_t r = 0; r < rows; ++r) {
      if (!above[r]) continue;
      const index_t row = source[j + r];
      if constexpr (ONE) {
        Int better = s[r] > floor;
        if (filter) better &= w.valid(lane, row, s[r]);
        floor = better ? s[r] : floor;
        best = better ? splat<Int>(typename Simd<T>::Scalar(row - w.bank_begin)) : best;
        continue;
      }
      if (filter) above[r] &= lane_bits(w.valid(lane, row, s[r]));
      T lanes[W];
      store(lanes, s[r]);
      for (unsigned left = above[r]; left; left &= left - 1) {
        const int n = __builtin_ctz(left);
        found.push(lane + n, lanes[n], row);
      }
    }
    if (ONE) store(found.floors + lane, floor), store(found.best + lane, best);
  }
}

// The same of few queries, whose similarities lie as rows: a vector of bank rows is compared at once.
template <class T, bool ONE>
void collect_rows(const Weigher<T>& w, index_t query, const T* similar, bool filter, Selection<T>& found) {
  using Vec = typename Simd<T>::Vec;
  using Int = typename Simd<T>::Int;
  constexpr index_t W = Simd<T>::width;
  const index_t count = w.tile->count, *source = w.tile->source;
  const float* row_scale = w.op->row_scale;
  for (index_t j = 0; j < count; j += W) {
    const index_t rows = count - j < W ? count - j : W;
    Vec s = load<Vec>(similar + j);
    if (row_scale)
      for (index_t r = 0; r < rows; ++r) s[r] *= T(row_scale[source[j + r]]);
    unsigned above = lane_bits((Int)(s > found.floors[query])) & (~0u >> (32 - rows));
    if (!above) continue;
    T lanes[W];
    store(lanes, s);
    for (; above; above &= above - 1) {
      const int n = __builtin_ctz(above);
      const index_t row = source[j + n], first = query / W * W;
      if (filter && !(lane_bits(w.valid(first, row, splat<Vec>(lanes[n]))) >> (query - first) & 1)) continue;
      if constexpr (!ONE)
        found.push(query, lanes[n], row);
      else if (lanes[n] > found.floors[query])
        found.floors[query] = lanes[n], found.best[query] = typename Simd<T>::Scalar(row - w.bank_begin);
    }
  }
}

// E: elements of the product.
template <class E>
void slice(const HardestCall<typename Arithmetic<E>::Sum>& call) {
  using T = typename Arithmetic<E>::Sum;
  constexpr index_t W = Simd<T>::width, P = kPanel<T>;
  using Key = typename Ordered<T>::Key;
  const BankLse& op = *call.op;
  const index_t queries = call.queries;
  Carver carver{call.scratch};
  Tiles<E> tiles(carver, op, queries, call.tiling);
  Selection<T> found(carver, queries, call.k, call.capacity);
  const Weigher<T> w =
      make_weigher(op, tiles.scratch, &tiles.tile, call.query_begin, queries, call.bank_begin);
  T* panel = tiles.scratch.panels[0];
  tiles.start(call.query_begin, call.bank_begin, call.bank_end);
  found.start(call.bounds, queries);
  const auto collect_lanes = call.k == 1 ? collect<T, true> : collect<T, false>;
  const auto collect_few = call.k == 1 ? collect_rows<T, true> : collect_rows<T, false>;
  while (tiles.fill()) {
    Ahead ahead = tiles.ahead();
    if (tiles.few_only()) {
      tiles.few_similarities(&ahead);
      for (index_t i = 0; i < queries; ++i)
        collect_few(w, i, tiles.few_rows + i * tiles.few_stride, w.filters(), found);
      continue;
    }
    for (index_t q = 0; q < queries; q += P) {
      tiles.similarities(call.packed_query, q, panel, &ahead);
      for (index_t v = 0; v < P && q + v < queries; v += W)
        collect_lanes(w, q + v, panel + v, w.filters(), found);
    }
  }
  if (call.k == 1) found.take_best(call.bank_begin, queries);
  for (index_t i = 0; i < queries; ++i) {
    if (found.sizes[i] > call.k) found.cut(i);
    call.found[i] = found.sizes[i];
    Key* out = (Key*)call.keys + i * call.k;
    for (index_t n = 0; n < found.sizes[i]; ++n) out[n] = found.keys[i * call.capacity + n];
  }
}

template <class E>
index_t scratch_bytes(const BankLse& op, index_t queries, const Tiling& tiling, index_t capacity) {
  Carver carver{nullptr};
  const Tiles<E> tiles(carver, op, queries, tiling);
  const Selection<typename Arithmetic<E>::Sum> found(carver, queries, 0, capacity);
  return carver.at;
}

}  // namespace

const HardestOps<float> hardest_f32 = {scratch_bytes<float>, slice<float>};
const HardestOps<double> hardest_f64 = {scratch_bytes<double>, slice<double>};
#ifdef SEDE_PAIRS
const HardestOps<float> hardest_bf16 = {scratch_bytes<Pair>, slice<Pair>};
#else
const HardestOps<float> hardest_bf16 = {};
#endif

}  // namespace SEDE_ISA
}  // namespace sede
