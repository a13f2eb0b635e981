// From similarities to exponential weights: masks, running reference, sums, hardest value. One call
// treats one vector of queries against the rows of a bank tile, so no sum crosses vector lanes.
#pragma once

#include "rows.h"

namespace sede {
namespace SEDE_ISA {
namespace {

// Ids of a block of queries, laid out so that lanes compare with the width of T.
template <class T>
struct QueryIds;
template <>
struct QueryIds<float> {
  std::int32_t *low, *high;
  void set(index_t lane, index_t id) { low[lane] = std::int32_t(id), high[lane] = std::int32_t(id >> 32); }
  SEDE_INLINE VecI same(index_t lane, index_t id) const {
    return (load<VecI>(low + lane) == std::int32_t(id)) &
           (load<VecI>(high + lane) == std::int32_t(id >> 32));
  }
};
template <>
struct QueryIds<double> {
  std::int64_t *low, *high;
  void set(index_t lane, index_t id) { low[lane] = id; }
  SEDE_INLINE VecL same(index_t lane, index_t id) const { return load<VecL>(low + lane) == id; }
};

template <class T>
struct Weigher {
  const BankLse* op;
  index_t query_begin, queries, bank_begin;
  const BankTile<T>* tile;
  QueryIds<T> ids;
  const T* limit;            // [queries padded] of this block, or null
  SliceState<T> state;
  T exponent[3];             // scale / ln 2, so that exp2 serves
  T largest;                 // of exponent
  T* acc[2];                 // of query i: acc_size elements, acc_step apart, from i * acc_stride on
  index_t acc_stride, acc_step, acc_size;
  bool first;                // nothing accumulated yet

  bool filters() const {
    return (op->bank_ids && op->select != Select::keep && (op->query_ids || op->select == Select::positive)) ||
           op->skip_diagonal || op->limit || op->select == Select::positive;
  }

  // Lanes for which bank row `row` is valid.
  SEDE_INLINE typename Simd<T>::Int valid(index_t lane, index_t row, typename Simd<T>::Vec s) const {
    using Int = typename Simd<T>::Int;
    using Scalar = typename Simd<T>::Scalar;
    Int ok = ~Int{};
    if (op->select != Select::keep) {
      Int same = Int{};
      if (op->query_ids && op->bank_ids && (op->empty_slots || op->bank_ids[row] != -1))
        same = ids.same(lane, op->bank_ids[row]);
      ok = op->select == Select::mask ? ~same : same;
    }
    if (op->skip_diagonal) {
      const index_t own = row - query_begin - lane;  // lane of the query that owns this key
      if (own >= 0 && own < Simd<T>::width) ok[own] = Scalar(0);
    }
    if (limit) ok &= s <= load<typename Simd<T>::Vec>(limit + lane);
    return ok;
  }
};

// Raise the reference of the lanes that need it and rescale what they have summed so far.
template <class T, int E, bool FILTER>
__attribute__((noinline)) void raise_reference(const Weigher<T>& w, index_t lane, const T* panel,
                                              typename Simd<T>::Int needed) {
  using Vec = typename Simd<T>::Vec;
  constexpr index_t P = kPanel<T>;
  const T none = kNegInf<T>;
  Vec peak = splat<Vec>(none);
  for (index_t j = 0; j < w.tile->count; ++j) {
    Vec s = load<Vec>(panel + j * P);
    if (FILTER) s = w.valid(lane, w.tile->source[j], s) ? s : splat<Vec>(none);
    peak = s > peak ? s : peak;
  }
  const Vec old = load<Vec>(w.state.reference + lane);
  // Lanes that need nothing stay as they are: no query's result depends on its neighbours.
  const Vec next = (needed & (peak > old)) ? peak : old;
  store(w.state.reference + lane, next);
  for (int e = 0; e < E; ++e) {
    Vec factor = exp2_fast((old - next) * w.exponent[e]);
    factor = ((old == none) | (old == next)) ? splat<Vec>(T(1)) : factor;
    T* sum = w.state.sum + e * w.state.padded + lane;
    store(sum, load<Vec>(sum) * factor);
    if (w.op->moments) {
      T* moment = w.state.moment + e * w.state.padded + lane;
      store(moment, load<Vec>(moment) * factor);
    }
    for (int a = 0; a < w.op->accumulators; ++a) {
      if (w.op->accumulate[a] != e || w.first) continue;
      T* mass = w.state.mass + a * w.state.padded + lane;
      store(mass, load<Vec>(mass) * factor);
      for (int n = 0; n < Simd<T>::width && lane + n < w.queries; ++n) {
        if (factor[n] == T(1)) continue;
        T* row = w.acc[a] + (lane + n) * w.acc_stride;
        for (index_t d = 0; d < w.acc_size; ++d) row[d * w.acc_step] *= factor[n];
      }
    }
  }
}

// How far above the reference a similarity may lie, in powers of two, before it must be raised:
// sums stay below 2^(58 + 64) even for 2^64 slots.
template <class T>
constexpr T kHeadroom = T(58);

// Weights >= 0 rounded to bf16. The log-sum-exp takes them whole; a weighted mean of rows is divided by
// the sum of the rounded ones, which the product uses, without the row scale that they carry.
SEDE_INLINE VecF rounded(VecF p) { return (VecF)(((VecI)p + 0x8000) & std::int32_t(0xffff0000)); }
SEDE_INLINE VecD rounded(VecD p) { return p; }

// panel [count][kPanel]: similarities in, weights of accumulate[0] out; second: of accumulate[1].
// HALF: the weights will be used in bf16.
template <class T, int E, bool FILTER, bool EXTRA, bool HALF>
void weigh(const Weigher<T>& w, index_t lane, T* panel, T* second) {
  using Vec = typename Simd<T>::Vec;
  using Int = typename Simd<T>::Int;
  constexpr index_t P = kPanel<T>;
  const T none = kNegInf<T>;
  const index_t count = w.tile->count;
  const float* row_scale = w.op->row_scale;
  const index_t* source = w.tile->source;
  if (row_scale)
    for (index_t j = 0; j < count; ++j)
      store(panel + j * P, load<Vec>(panel + j * P) * T(row_scale[source[j]]));
  Vec base = Vec{};
  if (E > 0) {
    Vec peak = splat<Vec>(none);
    for (index_t j = 0; j < count; ++j) {
      const Vec s = load<Vec>(panel + j * P);
      peak = s > peak ? s : peak;
    }
    const Vec head = (peak - load<Vec>(w.state.reference + lane)) * w.largest;
    const Int needed = ~(head <= kHeadroom<T>);
    if (any(needed)) raise_reference<T, E, FILTER>(w, lane, panel, needed);
    base = load<Vec>(w.state.reference + lane);
    base = base == none ? Vec{} : base;
  }
  Vec sum[3] = {}, moment[3] = {}, mass[2] = {};
  Vec top{};
  Int top_index{}, valid_count{};
  if (EXTRA && w.op->hardest) {
    top = load<Vec>(w.state.top + lane);
    top_index = load<Int>(w.state.top_index + lane);
  }
  const int first = w.op->accumulators > 0 ? w.op->accumulate[0] : -1;
  const int other = w.op->accumulators > 1 ? w.op->accumulate[1] : -1;
  for (index_t j = 0; j < count; ++j) {
    const Vec s = load<Vec>(panel + j * P);
    Int ok{};
    if (FILTER) {
      ok = w.valid(lane, source[j], s);
      valid_count -= ok;
    }
    const T scale = row_scale ? T(row_scale[source[j]]) : T(1);
    const bool vanishing = scale < T(1e-30);  // so is the row, whose weight counts all the same
    const T inverse = HALF && row_scale && !vanishing ? T(1) / scale : T(1);
    for (int e = 0; e < E; ++e) {
      Vec p = exp2_fast((s - base) * w.exponent[e]);
      if (FILTER) p = ok ? p : Vec{};
      sum[e] += p;
      if (EXTRA && w.op->moments) moment[e] += p * (FILTER ? (ok ? s : Vec{}) : s);
      if (e != first && e != other) continue;
      Vec used = p * scale;
      if (HALF) {
        used = rounded(used);
        mass[e == other] += vanishing ? p : used * inverse;
      }
      store((e == first ? panel : second) + j * P, used);
    }
    if (EXTRA && w.op->hardest) {
      Int better = s > top, odd = s != s;
      if (FILTER) better &= ok, odd &= ok;
      top = better | odd ? s : top;
      top_index = better ? splat<Int>(typename Simd<T>::Scalar(source[j] - w.bank_begin)) : top_index;
    }
  }
  for (int e = 0; e < E; ++e) {
    T* out = w.state.sum + e * w.state.padded + lane;
    store(out, load<Vec>(out) + sum[e]);
    if (EXTRA && w.op->moments) {
      out = w.state.moment + e * w.state.padded + lane;
      store(out, load<Vec>(out) + moment[e]);
    }
  }
  for (int a = 0; HALF && a < w.op->accumulators; ++a) {
    T* out = w.state.mass + a * w.state.padded + lane;
    store(out, load<Vec>(out) + mass[a]);
  }
  if (EXTRA && w.op->hardest) {
    store(w.state.top + lane, top);
    store(w.state.top_index + lane, top_index);
  }
  auto* total = w.state.count + lane;
  if (FILTER)
    store(total, load<Int>(total) + valid_count);
  else
    store(total, load<Int>(total) + typename Simd<T>::Scalar(count));
}

template <class T>
using WeighFn = void (*)(const Weigher<T>&, index_t, T*, T*);

template <class T, bool FILTER, bool EXTRA, bool HALF>
WeighFn<T> pick_exponents(int exponents) {
  switch (exponents) {
    case 0: return weigh<T, 0, FILTER, EXTRA, HALF>;
    case 1: return weigh<T, 1, FILTER, EXTRA, HALF>;
    case 2: return weigh<T, 2, FILTER, EXTRA, HALF>;
    default: return weigh<T, 3, FILTER, EXTRA, HALF>;
  }
}

template <class T, bool HALF = false>
WeighFn<T> pick_weigh(const Weigher<T>& w) {
  const int exponents = w.op->exponents;
  const bool extra = w.op->moments || w.op->hardest;
  if (w.filters())
    return extra ? pick_exponents<T, true, true, HALF>(exponents)
                 : pick_exponents<T, true, false, HALF>(exponents);
  return extra ? pick_exponents<T, false, true, HALF>(exponents)
               : pick_exponents<T, false, false, HALF>(exponents);
}

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
