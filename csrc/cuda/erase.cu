// Attention-guided erasing without a sort: a row lies in shared memory, and order statistics come
// from a search over the bits of its floats. Sums of a rule in fp64, so that ties break as defined.
#include "device/group.cuh"

namespace sede_cuda {

// Integers in the order of the floats; -0 equals 0 and every NaN is largest.
__device__ __forceinline__ unsigned order_of(float x) {
  if (x != x) return 0xffffffffu;
  const unsigned bits = __float_as_uint(x == 0.f ? 0.f : x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float value_of(unsigned order) {
  return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

__device__ __forceinline__ float read(const void* data, int dtype, index_t at) {
  return dtype == bf16   ? number(static_cast<const Bf16*>(data)[at])
         : dtype == f16 ? number(static_cast<const F16*>(data)[at])
                        : static_cast<const float*>(data)[at];
}

__device__ __forceinline__ void write(void* data, int dtype, index_t at, float x) {
  if (dtype == bf16) static_cast<Bf16*>(data)[at] = operand<Bf16>(x);
  else if (dtype == f16) static_cast<F16*>(data)[at] = operand<F16>(x);
  else static_cast<float*>(data)[at] = x;
}

template <class Group>
struct Row {
  Group group;
  const float* a;       // [L] in shared memory
  unsigned char* keep;  // [L] in shared memory
  int length;           // of the row
  int valid;            // of them, the first, are fragments

  // f(i) for this thread's fragments.
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    for (int i = group.lane(); i < valid; i += Group::SIZE) f(i);
  }

  template <class T, class F>
  __device__ __forceinline__ T sum(F f) const {
    T mine = 0;
    each([&](int i) { mine += f(i); });
    return group.over(mine, Plus());
  }

  // The `need`-th largest key among the candidates; all ones for need = 0.
  template <class Key, class Candidate>
  __device__ __forceinline__ unsigned largest_bound(Key key, Candidate candidate, int need) const {
    unsigned bound = 0;
#pragma unroll 1
    for (unsigned bit = 0x80000000u; bit != 0; bit >>= 1) {
      const unsigned trial = bound | bit;
      const int above = sum<int>([&](int i) { return int(candidate(i) && key(i) >= trial); });
      if (above >= need) bound = trial;
    }
    return bound;
  }

  // Marks the `need` largest candidates, ties to the lowest index.
  template <class Key, class Candidate>
  __device__ __forceinline__ void keep_largest(Key key, Candidate candidate, int need) {
    const unsigned bound = largest_bound(key, candidate, need);
    int left = need - sum<int>([&](int i) { return int(candidate(i) && key(i) > bound); });
    for (int first = 0; first < valid; first += Group::SIZE) {
      const int i = first + group.lane();
      const bool in = i < valid && candidate(i);
      const bool level = in && key(i) == bound;
      int all;
      const int before = group.before(level, all);
      const bool take = (in && key(i) > bound) || (level && before < left);
      left = max(0, left - all);
      if (take) keep[i] = 1;
    }
    group.sync();
  }

  // Marks what the rule attends to.
  __device__ __forceinline__ void attend(const Erase& op) {
    const auto key = [&](int i) { return order_of(a[i]); };
    const auto any = [](int) { return true; };
    if (op.rule == topk) return keep_largest(key, any, int(op.threshold));
    double cut = op.threshold;
    float edge = float(op.threshold);
    bool wide = false, inclusive = false;  // compared in fp64; the cut itself is attended to
    if (op.rule == mean) {
      cut = sum<double>([&](int i) { return double(a[i]); }) / double(max(valid, 1));
      wide = true;
    } else if (op.rule == prob) {
      const auto root = [&](int i) { return sqrt(fmax(double(a[i]), 0.0)); };
      const double total = sum<double>(root);
      cut = sum<double>([&](int i) { return double(a[i]) * root(i); }) / (total == 0 ? 1.0 : total);
      wide = true;
    } else if (op.rule == relative) {
      float peak = -infinity();
      each([&](int i) { peak = a[i] > peak || a[i] != a[i] ? a[i] : peak; });
      edge = group.over(peak, LargerOrNan()) * float(op.threshold);
      inclusive = true;
    } else if (op.rule == quantile) {
      edge = quantile_of(op.threshold);
      inclusive = true;
    }
    each([&](int i) {
      const bool high = wide ? double(a[i]) > cut : inclusive ? a[i] >= edge : a[i] > edge;
      keep[i] = high;
    });
    group.sync();
  }

  struct LargerOrNan {
    __device__ __forceinline__ float operator()(float x, float y) const {
      return x != x || x > y ? x : y;
    }
  };

  // The quantile `share`, interpolated as the reference does it.
  __device__ __forceinline__ float quantile_of(double share) const {
    const auto key = [&](int i) { return order_of(a[i]); };
    const int last = max(valid - 1, 0);
    const double position = double(last) * share;
    const int below = int(position);
    // The n-th smallest is the (count - n)-th largest.
    const unsigned low_key =
        largest_bound(key, [](int) { return true; }, max(valid - below, 1));
    const int up_to = sum<int>([&](int i) { return int(key(i) <= low_key); });
    unsigned next = 0xffffffffu;
    each([&](int i) { next = key(i) > low_key ? min(next, key(i)) : next; });
    next = group.over(next, Smaller());
    const unsigned high_key = up_to > below + 1 || below >= last ? low_key : next;
    const float low = value_of(low_key);
    const float step = high_key == low_key ? 0.f : value_of(high_key) - low;
    return __fadd_rn(low, __fmul_rn(float(position - double(below)), step));
  }

  // Turns what is attended to into what stays, topped up to keep_min.
  __device__ __forceinline__ void choose(const Erase& op) {
    attend(op);
    if (!op.low) {
      each([&](int i) { keep[i] = !keep[i]; });
      group.sync();
    }
    const int missing = op.keep_min - sum<int>([&](int i) { return int(keep[i]); });
    if (missing <= 0) return;
    const unsigned flip = op.low ? 0u : 0xffffffffu;
    keep_largest([&](int i) { return order_of(a[i]) ^ flip; },
                 [&](int i) { return keep[i] == 0; }, missing);
  }
};

// The row of this thread's group, and its floats and marks in shared memory.
template <class Group, int GROUPS>
__device__ __forceinline__ index_t place(int length, float*& values, unsigned char*& marks) {
  extern __shared__ float memory[];
  const int own = GROUPS == 1 ? 0 : threadIdx.x / Group::SIZE;
  values = memory + own * length;
  marks = reinterpret_cast<unsigned char*>(memory + GROUPS * length) + own * length;
  return index_t(blockIdx.x) * GROUPS + own;
}

template <class Group, int GROUPS>
__device__ __forceinline__ void erase(const Erase& op) {
  float* a;
  unsigned char* keep;
  const index_t n = place<Group, GROUPS>(op.length, a, keep);
  if (n >= op.rows) return;
  const index_t at = n * op.length;
  index_t valid = op.lengths == nullptr ? op.length : op.lengths[n];
  valid = valid < 0 ? 0 : valid > op.length ? op.length : valid;
  Row<Group> row{Group(), a, keep, op.length, int(valid)};
  for (int i = row.group.lane(); i < op.length; i += Group::SIZE) {
    a[i] = read(op.attention, op.dtype, at + i);
    keep[i] = 0;
  }
  row.group.sync();
  row.choose(op);
  row.group.sync();
  float divisor = 1.f;
  if (op.renormalize) {
    const float total = row.template sum<float>([&](int i) { return keep[i] ? a[i] : 0.f; });
    if (total != 0.f) divisor = total;
  }
  for (int i = row.group.lane(); i < op.length; i += Group::SIZE) {
    write(op.out, op.dtype, at + i, keep[i] ? __fdiv_rn(a[i], divisor) : 0.f);
    op.mask[at + i] = keep[i];
  }
}

// da = H (g - sum(g out)) / Z, or H g.
template <class Group, int GROUPS>
__device__ __forceinline__ void erase_backward(const EraseBackward& op) {
  const Group group;
  const index_t n = index_t(blockIdx.x) * GROUPS + (GROUPS == 1 ? 0 : threadIdx.x / Group::SIZE);
  if (n >= op.rows) return;
  const index_t at = n * op.length;
  const auto kept = [&](int i, const void* of) {
    return op.mask[at + i] ? read(of, op.dtype, at + i) : 0.f;
  };
  float total = 0.f, inner = 0.f;
  if (op.renormalize) {
    for (int i = group.lane(); i < op.length; i += Group::SIZE) {
      const float a = kept(i, op.attention);
      total += a;
      inner = fmaf(a, kept(i, op.grad_out), inner);
    }
    total = group.over(total, Plus());
    inner = group.over(inner, Plus());
  }
  const bool scaled = op.renormalize && total != 0.f;
  const float shift = scaled ? inner / total : 0.f, divisor = scaled ? total : 1.f;
  for (int i = group.lane(); i < op.length; i += Group::SIZE) {
    const float g = kept(i, op.grad_out);
    write(op.grad, op.dtype, at + i, op.mask[at + i] ? __fdiv_rn(g - shift, divisor) : 0.f);
  }
}

}  // namespace sede_cuda

using namespace sede_cuda;

#define SEDE_ERASE(name, Op)                                                            \
  extern "C" __global__ void __launch_bounds__(32 * kEraseWarps, 4) name##_warp(Op op) {   \
    name<WarpGroup, kEraseWarps>(op);                                                   \
  }                                                                                     \
  extern "C" __global__ void __launch_bounds__(kEraseThreads) name##_block(Op op) {     \
    name<BlockGroup<kEraseThreads>, 1>(op);                                             \
  }

SEDE_ERASE(erase, Erase)
SEDE_ERASE(erase_backward, EraseBackward)
