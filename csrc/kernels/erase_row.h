// Which fragments of one row stay. A row is a scratch array of floats, zero beyond its valid length
// and padded to whole vectors; a keep array holds -1 (kept) or 0 for each.
#pragma once

#include "convert.h"
#include "erase_api.h"

namespace sede {
namespace SEDE_ISA {
namespace {

constexpr std::int32_t kNoKey = -2147483647 - 1;  // below every key: not a candidate

SEDE_INLINE index_t whole_vectors(index_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// -1 in the lanes n of a vector with first + n < end.
SEDE_INLINE VecI lanes_below(index_t first, index_t end) {
  return lane_numbers() < std::int32_t(end - first < kLanes ? end - first : kLanes);
}

// Integers ordered like floats, NaN above all others and -0 equal to 0, as torch sorts.
SEDE_INLINE VecI order_key(VecF x) {
  const VecI bits = (VecI)(x + 0.0f);
  const VecI key = bits ^ ((bits >> 31) & 0x7fffffff);
  return x != x ? splat<VecI>(std::int32_t(0x7fc00000)) : key;
}
SEDE_INLINE float key_value(std::int32_t key) {
  key ^= (key >> 31) & 0x7fffffff;
  float x;
  __builtin_memcpy(&x, &key, 4);
  return x;
}

SEDE_INLINE index_t count_from(const std::int32_t* keys, index_t padded, std::int32_t least) {
  VecI total{};
  for (index_t n = 0; n < padded; n += kLanes) total -= load<VecI>(keys + n) >= least;
  return lane_sum(total);
}

struct Cut {
  std::int32_t key;
  bool exact;  // just the wanted number of keys are >= key; else key is the last of them, with ties
};

// Where the `wanted` (> 0, at most the candidates) greatest keys begin: bisection over the values,
// which ends as soon as the count is right.
SEDE_INLINE Cut find_cut(const std::int32_t* keys, index_t padded, index_t wanted) {
  VecI least = splat<VecI>(std::int32_t(0x7fffffff)), greatest = splat<VecI>(kNoKey);
  for (index_t n = 0; n < padded; n += kLanes) {
    const VecI key = load<VecI>(keys + n);
    const VecI up = key == kNoKey ? splat<VecI>(std::int32_t(0x7fffffff)) : key;
    least = up < least ? up : least;
    greatest = key > greatest ? key : greatest;
  }
  std::int64_t low = lane_min(least), high = ~std::int64_t(lane_min(~greatest));
  while (low < high) {
    const std::int64_t middle = low + (high - low + 1) / 2;
    const index_t count = count_from(keys, padded, std::int32_t(middle));
    if (count == wanted) return {std::int32_t(middle), true};
    if (count > wanted)
      low = middle;
    else
      high = middle - 1;
  }
  return {std::int32_t(low), false};
}

// Adds the `wanted` greatest candidates to keep, ties to the lowest index.
__attribute__((noinline)) void keep_greatest(const std::int32_t* keys, index_t padded,
                                             index_t wanted, std::int32_t* keep) {
  const index_t candidates = count_from(keys, padded, kNoKey + 1);
  if (wanted > candidates) wanted = candidates;
  if (wanted <= 0) return;
  const Cut cut = find_cut(keys, padded, wanted);
  VecI above{};
  for (index_t n = 0; n < padded; n += kLanes) {
    const VecI key = load<VecI>(keys + n);
    const VecI take = cut.exact ? key >= cut.key : key > cut.key;
    above -= take;
    store(keep + n, load<VecI>(keep + n) | take);
  }
  if (cut.exact) return;
  index_t ties = wanted - lane_sum(above);
  for (index_t n = 0; ties > 0; ++n) {
    if (keys[n] != cut.key) continue;
    keep[n] = -1;
    --ties;
  }
}

// The quantile `share` of the `count` keys, interpolated as the reference does it.
__attribute__((noinline)) float quantile_of(const std::int32_t* keys, index_t padded, index_t count,
                                            double share) {
  const double position = share * double(count - 1);
  const index_t below = index_t(position);
  const index_t rank = count - below;  // from the greatest
  const Cut cut = find_cut(keys, padded, rank);
  std::int32_t key = cut.key;
  if (cut.exact) {
    VecI least = splat<VecI>(std::int32_t(0x7fffffff));
    for (index_t n = 0; n < padded; n += kLanes) {
      const VecI k = load<VecI>(keys + n);
      least = ((k >= cut.key) & (k < least)) ? k : least;
    }
    key = lane_min(least);
  }
  const float low = key_value(key);
  if (rank == 1) return low;
  std::int32_t next = key;
  if (count_from(keys, padded, key + 1) == rank - 1) {
    VecI least = splat<VecI>(std::int32_t(0x7fffffff));
    for (index_t n = 0; n < padded; n += kLanes) {
      const VecI k = load<VecI>(keys + n);
      least = ((k > key) & (k < least)) ? k : least;
    }
    next = lane_min(least);
  }
  return low + float(position - double(below)) * (key_value(next) - low);
}

// The greatest float that is not above x: for floats, a > x and a > round_down(x) are the same.
// Which way x was rounded is a coin's toss, so no branch asks for it.
SEDE_INLINE float round_down(double x) {
  const float near = float(x);
  const std::int32_t over = double(near) > x;
  std::int32_t bits;
  __builtin_memcpy(&bits, &near, 4);
  bits += near < 0.0f ? over : -over;
  if (near == 0.0f) bits = over ? std::int32_t(0x80000001u) : 0;
  float below;
  __builtin_memcpy(&below, &bits, 4);
  return below;
}

SEDE_INLINE float mean_cut(const float* row, index_t padded, index_t length) {
  VecD sum{};
  for (index_t n = 0; n < padded; n += kLanes) sum += low_half(row + n) + high_half(row + n);
  return round_down(lane_sum(sum) / double(length));
}

// sum a^1.5 / sum a^0.5; 0/0 is NaN, above which nothing lies.
SEDE_INLINE float prob_cut(const float* row, index_t padded) {
  VecD upper{}, lower{};
  for (index_t n = 0; n < padded; n += kLanes) {
    float root[kLanes];
    for (int i = 0; i < kLanes; ++i)
      root[i] = __builtin_sqrtf(row[n + i] < 0.0f ? 0.0f : row[n + i]);
    upper += low_half(row + n) * low_half(root) + high_half(row + n) * high_half(root);
    lower += low_half(root) + high_half(root);
  }
  return round_down(lane_sum(upper) / lane_sum(lower));
}

SEDE_INLINE float peak_of(const float* row, index_t padded, index_t length) {
  VecF peak = splat<VecF>(kNegInf<float>);
  for (index_t n = 0; n < padded; n += kLanes) {
    const VecF x = load<VecF>(row + n);
    const VecI better = ((x > peak) | (x != x)) & lanes_below(n, length);
    peak = better ? x : peak;
  }
  float lanes[kLanes], best = kNegInf<float>;
  store(lanes, peak);
  for (float x : lanes) best = x > best || x != x ? x : best;
  return best;
}

// Keys of the lanes that are valid and not kept; the smallest come first where `largest` is false.
SEDE_INLINE void rest_keys(const float* row, index_t padded, index_t length,
                           const std::int32_t* keep, bool largest, std::int32_t* keys) {
  const std::int32_t flip = largest ? 0 : -1;
  for (index_t n = 0; n < padded; n += kLanes) {
    VecI ok = lanes_below(n, length);
    if (keep) ok &= ~load<VecI>(keep + n);
    store(keys + n, ok ? order_key(load<VecF>(row + n)) ^ flip : splat<VecI>(kNoKey));
  }
}

// Fills keep[padded] for a row of `length` valid fragments; returns the sum of what is kept.
SEDE_INLINE float keep_row(const EraseRule& rule, const float* row, index_t length, index_t padded,
                           std::int32_t* keep, std::int32_t* keys) {
  const std::int32_t flip = rule.low ? 0 : -1;
  index_t kept = 0;
  if (rule.rule == Rule::topk) {
    for (index_t n = 0; n < padded; n += kLanes) store(keep + n, VecI{});
    rest_keys(row, padded, length, nullptr, true, keys);
    keep_greatest(keys, padded, index_t(rule.threshold), keep);
    VecI count{};
    for (index_t n = 0; n < padded; n += kLanes) {
      const VecI k = (load<VecI>(keep + n) ^ flip) & lanes_below(n, length);
      store(keep + n, k);
      count -= k;
    }
    kept = lane_sum(count);
  } else {
    float cut = float(rule.threshold);
    bool inclusive = false;
    switch (rule.rule) {
      case Rule::mean: cut = mean_cut(row, padded, length); break;
      case Rule::prob: cut = prob_cut(row, padded); break;
      case Rule::relative:
        cut *= peak_of(row, padded, length);
        inclusive = true;
        break;
      case Rule::quantile:
        inclusive = true;
        if (length == 0) break;
        rest_keys(row, padded, length, nullptr, true, keys);
        cut = quantile_of(keys, padded, length, rule.threshold);
        break;
      default: break;
    }
    VecI count{};
    for (index_t n = 0; n < padded; n += kLanes) {
      const VecF x = load<VecF>(row + n);
      const VecI attended = inclusive ? x >= cut : x > cut;
      const VecI k = (attended ^ flip) & lanes_below(n, length);
      store(keep + n, k);
      count -= k;
    }
    kept = lane_sum(count);
  }
  if (__builtin_expect(kept < rule.keep_min && kept < length, 0)) {
    rest_keys(row, padded, length, keep, rule.low, keys);
    keep_greatest(keys, padded, rule.keep_min - kept, keep);
  }
  VecD total{};
  for (index_t n = 0; n < padded; n += kLanes) {
    float x[kLanes];
    store(x, (VecF)((VecI)load<VecF>(row + n) & load<VecI>(keep + n)));
    total += low_half(x) + high_half(x);
  }
  return float(lane_sum(total));
}

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
