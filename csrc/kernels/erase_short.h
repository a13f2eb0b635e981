// Rows of at most kShortVecs vectors, judged in registers as erase_row.h judges a row in memory.
// Ranks come from comparing every pair of fragments, which beats bisection at this length.
#pragma once

#include "erase_row.h"

namespace sede {
namespace SEDE_ISA {
namespace {

constexpr int kShortVecs = 4;

template <int V>
struct ShortRow {
  VecF x[V];        // 0 in the lanes that are not inside
  VecI inside[V], keep[V] = {};
  index_t length;

  SEDE_INLINE void set_length(index_t n) {
    length = n;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) inside[v] = lanes_below(v * kLanes, n);
  }

  static SEDE_INLINE double sum(const VecF* row) {
    VecD total{};
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) total += low_half(row[v]) + high_half(row[v]);
    return lane_sum(total);
  }

  SEDE_INLINE float prob_cut() const {
    VecD upper{}, lower{};
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const VecF root = square_root(x[v] < 0.0f ? VecF{} : x[v]);
      const VecD low = low_half(root), high = high_half(root);
      upper += low_half(x[v]) * low + high_half(x[v]) * high;
      lower += low + high;
    }
    return round_down(lane_sum(upper) / lane_sum(lower));
  }

  SEDE_INLINE void order_keys(VecI* keys) const {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) keys[v] = inside[v] ? order_key(x[v]) : splat<VecI>(kNoKey);
  }

  SEDE_INLINE float peak() const {
    VecF greatest = splat<VecF>(kNegInf<float>);
    VecI odd{};
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const VecF own = inside[v] ? x[v] : splat<VecF>(kNegInf<float>);
      greatest = own > greatest ? own : greatest;
      odd |= x[v] != x[v];
    }
    return any(odd) ? __builtin_nanf("") : lane_greatest(greatest);
  }

  // How many fragments are greater than each; `length` or more outside.
  SEDE_INLINE void ranks(const VecI* keys, VecI* above) const {
    std::int32_t lanes[V * kLanes];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      store(lanes + v * kLanes, keys[v]);
      above[v] = VecI{};
    }
    for (index_t n = 0; n < length; ++n) {
      const VecI other = splat<VecI>(lanes[n]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) above[v] -= other > keys[v];
    }
  }

  // The `rank`-th greatest (from 1 on) key.
  static SEDE_INLINE std::int32_t ranked(const VecI* keys, const VecI* above, index_t rank) {
    VecI least = splat<VecI>(std::int32_t(0x7fffffff));
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const VecI key = above[v] < std::int32_t(rank) ? keys[v] : least;
      least = key < least ? key : least;
    }
    return lane_least(least);
  }

  SEDE_INLINE float quantile(double share) const {
    VecI keys[V], above[V];
    order_keys(keys);
    ranks(keys, above);
    const double position = share * double(length - 1);
    const index_t below = index_t(position), rank = length - below;
    const float low = key_value(ranked(keys, above, rank));
    if (rank == 1) return low;
    const float next = key_value(ranked(keys, above, rank - 1));
    return low + float(position - double(below)) * (next - low);
  }

  // Marks the `wanted` greatest, unless a tie leaves the choice to the index: then false.
  SEDE_INLINE bool mark_greatest(index_t wanted) {
    VecI keys[V], above[V];
    order_keys(keys);
    ranks(keys, above);
    if (wanted > length) wanted = length;
    int marked = 0;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      keep[v] = inside[v] & (above[v] < std::int32_t(wanted));
      marked += count_set(keep[v]);
    }
    return marked == wanted;
  }

  // Fills keep; false where the row is one for keep_row (ties, too few kept).
  SEDE_INLINE bool judge(const EraseRule& rule) {
    const std::int32_t flip = rule.low ? 0 : -1;
    float cut = float(rule.threshold);
    bool inclusive = false;
    switch (rule.rule) {
      case Rule::mean: cut = round_down(sum(x) / double(length)); break;
      case Rule::prob: cut = prob_cut(); break;
      case Rule::relative:
        cut *= peak();
        inclusive = true;
        break;
      case Rule::quantile:
        inclusive = true;
        if (length > 0) cut = quantile(rule.threshold);
        break;
      case Rule::topk:
        if (!mark_greatest(index_t(rule.threshold))) return false;
        break;
      default: break;
    }
    index_t kept = 0;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const VecI attended = rule.rule == Rule::topk ? keep[v]
                            : inclusive             ? x[v] >= cut
                                                    : x[v] > cut;
      keep[v] = (attended ^ flip) & inside[v];
      kept += count_set(keep[v]);
    }
    return kept >= rule.keep_min || kept >= length;
  }
};

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
