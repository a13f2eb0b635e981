// Which fragments of short rows stay, a row in each lane, under the rules that need no order. The
// rows' cuts and sums are those of erase_row.h: in double, and the cut rounded down to a float.
#pragma once

#include "erase_row.h"

namespace sede {
namespace SEDE_ISA {
namespace {

struct LaneSums {
  VecD low{}, high{};

  SEDE_INLINE void add(VecF x) { low += low_half(x), high += high_half(x); }
  SEDE_INLINE void add(VecF x, VecF y) {
    low += low_half(x) * low_half(y), high += high_half(x) * high_half(y);
  }
  SEDE_INLINE VecF nearest() const {
    double wide[kLanes];
    store(wide, low), store(wide + kLanes / 2, high);
    float near[kLanes];
    for (int n = 0; n < kLanes; ++n) near[n] = float(wide[n]);
    return load<VecF>(near);
  }
  // The greatest floats that are not above.
  SEDE_INLINE VecF rounded_down() const {
    const VecF near = nearest();
    double wide[kLanes], back[kLanes];
    store(wide, low), store(wide + kLanes / 2, high);
    store(back, low_half(near)), store(back + kLanes / 2, high_half(near));
    std::int32_t above[kLanes];
    for (int n = 0; n < kLanes; ++n) above[n] = -std::int32_t(back[n] > wide[n]);
    const VecI over = load<VecI>(above), bits = (VecI)near + (near < 0.0f ? -over : over);
    const VecI zero = over & std::int32_t(0x80000001u);
    return (VecF)(near == 0.0f ? zero : bits);
  }
};

// sum p / length, or sum p^1.5 / sum p^0.5.
SEDE_INLINE VecF lane_cut(Rule rule, const VecF* p, index_t n, VecI lengths) {
  LaneSums upper, lower;
  if (rule == Rule::mean) {
    for (index_t i = 0; i < n; ++i) upper.add(p[i]);
    float counts[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) counts[lane] = float(lengths[lane]);
    lower.add(load<VecF>(counts));
  } else {
    for (index_t i = 0; i < n; ++i) {
      float root[kLanes];
      store(root, p[i] < 0.0f ? VecF{} : p[i]);
      for (int lane = 0; lane < kLanes; ++lane) root[lane] = __builtin_sqrtf(root[lane]);
      upper.add(p[i], load<VecF>(root));
      lower.add(load<VecF>(root));
    }
  }
  upper.low /= lower.low, upper.high /= lower.high;
  return upper.rounded_down();
}

// The first of the greatest (or smallest) fragments stays in these lanes, which kept none.
SEDE_INLINE void keep_one(const VecF* p, index_t n, VecI lengths, bool largest, VecI in, VecI* keep) {
  VecI best = splat<VecI>(kNoKey), which{};
  for (index_t i = 0; i < n; ++i) {
    const VecI key = order_key(p[i]) ^ (largest ? 0 : -1);
    const VecI better = (key > best) & (lengths > std::int32_t(i));
    best = better ? key : best;
    which = better ? splat<VecI>(std::int32_t(i)) : which;
  }
  for (index_t i = 0; i < n; ++i) keep[i] |= in & (which == std::int32_t(i));
}

// Fills keep[n] with -1 (kept) or 0 for rows p[n] of these lengths, zero beyond them, and total with
// the sum of what is kept. False where a row needs its fragments in order: by its rule, or because it
// keeps fewer than a keep_min above one.
SEDE_INLINE bool keep_lanes(const EraseRule& rule, const VecF* p, index_t n, VecI lengths,
                            VecI* keep, VecF* total) {
  VecF cut = splat<VecF>(float(rule.threshold));
  switch (rule.rule) {
    case Rule::mean:
    case Rule::prob: cut = lane_cut(rule.rule, p, n, lengths); break;
    case Rule::absolute: break;
    default: return false;
  }
  const std::int32_t flip = rule.low ? 0 : -1;
  VecI kept{};
  for (index_t i = 0; i < n; ++i) {
    keep[i] = ((p[i] > cut) ^ flip) & (lengths > std::int32_t(i));
    kept -= keep[i];
  }
  const std::int32_t least = std::int32_t(rule.keep_min < n ? rule.keep_min : n);
  const VecI few = (kept < least) & (kept < lengths);
  if (any(few)) {
    if (least > 1) return false;
    keep_one(p, n, lengths, rule.low, few, keep);
  }
  LaneSums sum;
  for (index_t i = 0; i < n; ++i) sum.add((VecF)((VecI)p[i] & keep[i]));
  *total = sum.nearest();
  return true;
}

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
