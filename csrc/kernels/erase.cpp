// Erasing on rows in memory: each row is read once into scratch, judged there, and written once.
#include "erase_short.h"
#include "narrow.h"

namespace sede {
namespace SEDE_ISA {
namespace {

struct EraseScratch {
  float *row, *other;
  std::int32_t *keep, *keys;
  EraseScratch(char* base, index_t length) {
    const index_t size = whole_vectors(length) * 4 + 64;
    row = (float*)base;
    other = (float*)(base + size);
    keep = (std::int32_t*)(base + 2 * size);
    keys = (std::int32_t*)(base + 3 * size);
  }
};

index_t scratch(index_t length) { return 4 * (whole_vectors(length) * 4 + 64); }

SEDE_INLINE VecF whole_vector(const float* p) { return load<VecF>(p); }
template <class S>
SEDE_INLINE VecF whole_vector(const S* p) {
  float x[kLanes];
  for (int n = 0; n < kLanes; ++n) x[n] = widen(p[n]);
  return load<VecF>(x);
}
SEDE_INLINE void put_vector(float* p, VecF v) { store(p, v); }
template <class S>
SEDE_INLINE void put_vector(S* p, VecF v) {
  float x[kLanes];
  store(x, v);
  for (int n = 0; n < kLanes; ++n) narrow(x[n], p[n]);
}

// One vector from p, of which `room` elements may be read; the caller discards what is not its own.
template <class S>
SEDE_INLINE VecF read_vector(const S* p, index_t room) {
  if (__builtin_expect(room >= kLanes, 1)) return whole_vector(p);
  S x[kLanes] = {};
  for (index_t n = 0; n < room; ++n) x[n] = p[n];
  return whole_vector(x);
}

// One vector to p, of which `room` elements may be written.
template <class S>
SEDE_INLINE void write_vector(S* p, VecF v, index_t room) {
  if (__builtin_expect(room >= kLanes, 1)) return put_vector(p, v);
  S x[kLanes];
  put_vector(x, v);
  for (index_t n = 0; n < room; ++n) p[n] = x[n];
}

SEDE_INLINE void write_mask(unsigned char* p, VecI keep, index_t room) {
  if (room >= kLanes) return store_bytes(p, keep);
  unsigned char bytes[kLanes];
  store_bytes(bytes, keep);
  for (index_t n = 0; n < room; ++n) p[n] = bytes[n];
}

SEDE_INLINE VecI read_mask(const unsigned char* p, index_t room) {
  if (room >= kLanes) return load_bytes(p);
  unsigned char bytes[kLanes] = {};
  for (index_t n = 0; n < room; ++n) bytes[n] = p[n];
  return load_bytes(bytes);
}

// The last vector of a row reaches into the next one: it may be read there, and written too, since
// the next row of these same begin .. end is written after it.
template <class S>
void forward_rows(const EraseForward& op, const S* in, S* out, index_t begin, index_t end,
                  char* memory) {
  const EraseScratch s(memory, op.length);
  const index_t length = op.length, padded = whole_vectors(length);
  const index_t readable = op.rows * length, writable = end * length;
  for (index_t r = begin; r < end; ++r) {
    const index_t at = r * length, valid = op.lengths ? op.lengths[r] : length;
    for (index_t n = 0; n < padded; n += kLanes) {
      const VecF x = read_vector(in + at + n, readable - at - n);
      store(s.row + n, lanes_below(n, valid) ? x : VecF{});
    }
    const float total = keep_row(op.rule, s.row, valid, padded, s.keep, s.keys);
    const float divisor = op.rule.renormalize && total != 0.0f ? total : 1.0f;
    for (index_t n = 0; n < padded; n += kLanes) {
      const VecI keep = load<VecI>(s.keep + n);
      const VecF kept = (VecF)((VecI)load<VecF>(s.row + n) & keep);
      write_vector(out + at + n, kept / divisor, writable - at - n);
      write_mask(op.mask + at + n, keep, writable - at - n);
    }
  }
}

// The same with the row in registers; what ShortRow leaves undecided goes through memory.
template <int V, class S>
void forward_short(const EraseForward& op, const S* in, S* out, index_t begin, index_t end,
                   char* memory) {
  const EraseScratch s(memory, op.length);
  const index_t length = op.length, readable = op.rows * length, writable = end * length;
  ShortRow<V> row;
  row.set_length(length);
  for (index_t r = begin; r < end; ++r) {
    const index_t at = r * length;
    if (op.lengths) row.set_length(op.lengths[r]);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const VecF x = read_vector(in + at + v * kLanes, readable - at - v * kLanes);
      row.x[v] = row.inside[v] ? x : VecF{};
    }
    if (__builtin_expect(!row.judge(op.rule), 0)) {
      for (int v = 0; v < V; ++v) store(s.row + v * kLanes, row.x[v]);
      keep_row(op.rule, s.row, row.length, V * kLanes, s.keep, s.keys);
      for (int v = 0; v < V; ++v) row.keep[v] = load<VecI>(s.keep + v * kLanes);
    }
    VecF kept[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) kept[v] = (VecF)((VecI)row.x[v] & row.keep[v]);
    const float total = op.rule.renormalize ? float(ShortRow<V>::sum(kept)) : 1.0f;
    const float divisor = total != 0.0f ? total : 1.0f;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const index_t n = at + v * kLanes;
      write_vector(out + n, kept[v] / divisor, writable - n);
      write_mask(op.mask + n, row.keep[v], writable - n);
    }
  }
}

template <class S>
void forward_as(const EraseForward& op, index_t begin, index_t end, char* memory) {
  const auto* in = (const S*)op.attention;
  auto* out = (S*)op.out;
  switch (whole_vectors(op.length) / kLanes) {
    case 1: return forward_short<1>(op, in, out, begin, end, memory);
    case 2: return forward_short<2>(op, in, out, begin, end, memory);
    case 3: return forward_short<3>(op, in, out, begin, end, memory);
    case kShortVecs: return forward_short<kShortVecs>(op, in, out, begin, end, memory);
    default: return forward_rows(op, in, out, begin, end, memory);
  }
}

template <class S>
void backward_rows(const EraseBackward& op, const S* grad, const S* in, S* out, index_t begin,
                   index_t end, char* memory) {
  const EraseScratch s(memory, op.length);
  const index_t length = op.length, padded = whole_vectors(length);
  const index_t readable = op.rows * length, writable = end * length;
  for (index_t r = begin; r < end; ++r) {
    const index_t at = r * length;
    VecD total{}, inner{};
    for (index_t n = 0; n < padded; n += kLanes) {
      const index_t room = readable - at - n;
      const VecI keep = read_mask(op.mask + at + n, room) & lanes_below(n, length);
      store(s.keep + n, keep);
      store(s.other + n, (VecF)((VecI)read_vector(grad + at + n, room) & keep));
      if (!op.renormalize) continue;
      store(s.row + n, (VecF)((VecI)read_vector(in + at + n, room) & keep));
      total += low_half(s.row + n) + high_half(s.row + n);
      inner += low_half(s.row + n) * low_half(s.other + n) +
               high_half(s.row + n) * high_half(s.other + n);
    }
    const float sum = op.renormalize ? float(lane_sum(total)) : 0.0f;
    // A row whose kept attention sums to zero was passed through unscaled.
    const bool scaled = sum != 0.0f;
    const float mean = scaled ? float(lane_sum(inner) / double(sum)) : 0.0f;
    const float divisor = scaled ? sum : 1.0f;
    for (index_t n = 0; n < padded; n += kLanes) {
      const VecF g = (load<VecF>(s.other + n) - mean) / divisor;
      write_vector(out + at + n, (VecF)((VecI)g & load<VecI>(s.keep + n)), writable - at - n);
    }
  }
}

void forward(const EraseForward& op, index_t begin, index_t end, char* memory) {
  switch (op.dtype) {
    case DType::bf16: return forward_as<Bf16>(op, begin, end, memory);
    case DType::f16: return forward_as<F16>(op, begin, end, memory);
    default: return forward_as<float>(op, begin, end, memory);
  }
}

template <class S>
void backward_as(const EraseBackward& op, index_t begin, index_t end, char* memory) {
  backward_rows(op, (const S*)op.grad, (const S*)op.attention, (S*)op.out, begin, end, memory);
}

void backward(const EraseBackward& op, index_t begin, index_t end, char* memory) {
  switch (op.dtype) {
    case DType::bf16: return backward_as<Bf16>(op, begin, end, memory);
    case DType::f16: return backward_as<F16>(op, begin, end, memory);
    default: return backward_as<float>(op, begin, end, memory);
  }
}

}  // namespace

extern const EraseOps erase_ops = {scratch, forward, backward};

}  // namespace SEDE_ISA
}  // namespace sede
