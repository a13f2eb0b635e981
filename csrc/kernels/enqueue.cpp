// Writing keys into the ring: read once, normalise, cast or quantise, store.
#include "slice.h"

namespace sede {
namespace SEDE_ISA {
namespace {

SEDE_INLINE void narrow(float x, float& out) { out = x; }
SEDE_INLINE void narrow(float x, double& out) { out = double(x); }
SEDE_INLINE void narrow(float x, Bf16& out) { out.bits = float_to_bf16(x); }
SEDE_INLINE void narrow(float x, F16& out) { out.bits = float_to_f16(x); }
SEDE_INLINE void narrow(double x, float& out) { out = float(x); }
SEDE_INLINE void narrow(double x, double& out) { out = x; }
SEDE_INLINE void narrow(double x, Bf16& out) { out.bits = float_to_bf16(float(x)); }
SEDE_INLINE void narrow(double x, F16& out) { out.bits = float_to_f16(float(x)); }
SEDE_INLINE bool finite(float x) { return x - x == 0.0f; }
SEDE_INLINE bool finite(double x) { return x - x == 0.0; }
SEDE_INLINE bool finite(Bf16 x) { return (x.bits & 0x7f80) != 0x7f80; }
SEDE_INLINE bool finite(F16 x) { return (x.bits & 0x7c00) != 0x7c00; }
SEDE_INLINE bool finite(std::int8_t) { return true; }
// To the nearest, ties to even (the sum's low bits are the integer); NaN becomes 0.
template <class T>
SEDE_INLINE void narrow(T x, std::int8_t& out) {
  const float y = float(x);
  const float near = y == y ? (y > 127.0f ? 127.0f : y < -127.0f ? -127.0f : y) : 0.0f;
  out = std::int8_t(std::int32_t(to_bits(near + 12582912.0f) - 0x4b400000u));
}

template <class T>
T total(typename Simd<T>::Vec v) {
  T sum = T(0);
  for (int n = 0; n < Simd<T>::width; ++n) sum += v[n];
  return sum;
}

// What a key is scaled by, the scale of its row where rows are quantised, and whether the row will be
// finite. Four chains of sums: one would wait for each addition.
template <class T>
struct Scaling {
  T factor, row_scale;
  bool is_finite;

  Scaling(const T* x, index_t padded, const Enqueue& op) {
    const bool normalize = op.normalize, quantize = op.row_scale != nullptr;
    using Vec = typename Simd<T>::Vec;
    constexpr index_t W = Simd<T>::width, kChains = 4;
    Vec squares[kChains] = {}, largest[kChains] = {};
    auto take = [&](Vec v, int chain) {
      squares[chain] += v * v;
      if (normalize && !quantize) return;
      const Vec magnitude = v < T(0) ? -v : v;
      largest[chain] = magnitude > largest[chain] ? magnitude : largest[chain];
    };
    index_t d = 0;
    for (; d + kChains * W <= padded; d += kChains * W)
#pragma GCC unroll 4
      for (int chain = 0; chain < kChains; ++chain) take(load<Vec>(x + d + chain * W), chain);
    for (; d < padded; d += W) take(load<Vec>(x + d), 0);
    const T square = total<T>((squares[0] + squares[1]) + (squares[2] + squares[3]));
    factor = row_scale = T(1);
    const T off = square - T(1);
    if (normalize && square != T(0) && !((off < T(0) ? -off : off) <= T(1e-6)))
      factor = T(1) / T(__builtin_sqrt(double(square)));
    // A NaN or an infinity anywhere makes the squares NaN or infinite.
    is_finite = normalize ? finite(square) : square == square;
    if (normalize && !quantize) return;
    T peak = T(0);
    for (const Vec& chain : largest)
      for (int lane = 0; lane < W; ++lane) peak = chain[lane] > peak ? chain[lane] : peak;
    if (!normalize) is_finite = is_finite && holds(peak, op.rows.dtype);
    if (!quantize) return;
    row_scale = peak * factor / T(127);
    is_finite = is_finite && finite(float(row_scale));
    factor = row_scale == T(0) ? T(0) : factor / row_scale;
  }

  // Whether a row of that type takes numbers up to `peak`.
  static bool holds(T peak, DType dtype) {
    bool yes = true;
    with_type(dtype, static_cast<const void*>(nullptr), [&](auto* data) {
      std::remove_const_t<std::remove_pointer_t<decltype(data)>> stored;
      narrow(peak, stored);
      yes = finite(stored);
    });
    return yes && finite(peak);
  }
};

// Keys begin .. end of the call; scratch holds one key, padded with zeros to whole vectors, unless
// the keys lie in memory as such.
template <class T>
Enqueued write_keys(const Enqueue& op, index_t begin, index_t end, T* scratch) {
  const index_t dim = op.rows.cols, padded = round_up(dim, Simd<T>::width), size = op.rows.rows;
  const bool in_place = padded == dim && op.keys.col_stride == 1 &&
                        op.keys.dtype == (sizeof(T) == 8 ? DType::f64 : DType::f32);
  for (index_t d = dim; d < padded; ++d) scratch[d] = T(0);
  Enqueued done{0, 0};
  for (index_t n = begin; n < end; ++n) {
    const index_t slot = (op.first_slot + n) % size;
    if (!in_place) read_row(op.keys, n, scratch, 1);
    const T* x = in_place ? (const T*)op.keys.data + n * op.keys.row_stride : scratch;
    const Scaling<T> scaling(x, padded, op);
    const bool kept = scaling.is_finite;
    if (op.row_scale) op.row_scale[slot] = kept ? float(scaling.row_scale) : 0.0f;
    const T factor = scaling.factor;
    with_type(op.rows.dtype, op.rows.data, [&](auto* data) {
      auto* row = const_cast<std::remove_const_t<std::remove_pointer_t<decltype(data)>>*>(data) +
                  slot * op.rows.row_stride;
      const index_t step = op.rows.col_stride;
      if (!kept)
        for (index_t d = 0; d < dim; ++d) row[d * step] = {};
      else if (step == 1)
        for (index_t d = 0; d < dim; ++d) narrow(x[d] * factor, row[d]);
      else
        for (index_t d = 0; d < dim; ++d) narrow(x[d] * factor, row[d * step]);
    });
    const index_t id = !kept ? -1 : op.key_ids ? op.key_ids[n] : -2;
    done.filled += index_t(id != -1) - index_t(op.ids[slot] != -1);
    done.rejected += index_t(!kept);
    op.ids[slot] = id;
  }
  return done;
}

// Sets begin .. end of the call: read to find what is not finite, then written.
template <class T>
Enqueued write_sets_as(const EnqueueSets& op, index_t begin, index_t end, T* scratch) {
  const index_t dim = op.rows.cols, longest = op.rows.rows;
  const index_t padded = round_up(dim, Simd<T>::width);
  Enqueue plain{};
  plain.rows = op.rows;
  for (index_t d = dim; d < padded; ++d) scratch[d] = T(0);
  Enqueued done{0, 0};
  for (index_t n = begin; n < end; ++n) {
    const index_t slot = (op.first_slot + n) % op.slots;
    const index_t length = op.key_lengths ? op.key_lengths[n] : op.keys.rows;
    Matrix set = op.keys;
    set.data = static_cast<const char*>(set.data) + n * op.set_step * bytes_of(set.dtype);
    bool kept = true;
    for (index_t r = 0; r < length && kept; ++r) {
      read_row(set, r, scratch, 1);
      kept = Scaling<T>(scratch, padded, plain).is_finite;
    }
    with_type(op.rows.dtype, op.rows.data, [&](auto* data) {
      auto* first = const_cast<std::remove_const_t<std::remove_pointer_t<decltype(data)>>*>(data) +
                    slot * op.slot_step;
      const index_t step = op.rows.col_stride;
      for (index_t r = 0; r < longest; ++r) {
        auto* row = first + r * op.rows.row_stride;
        const bool filled = kept && r < length;
        if (filled) read_row(set, r, scratch, 1);
        for (index_t d = 0; d < dim; ++d) {
          if (filled)
            narrow(scratch[d], row[d * step]);
          else
            row[d * step] = {};
        }
      }
    });
    const index_t id = !kept ? -1 : op.key_ids ? op.key_ids[n] : -2;
    done.filled += index_t(id != -1) - index_t(op.ids[slot] != -1);
    done.rejected += index_t(!kept);
    op.ids[slot] = id;
    op.lengths[slot] = kept ? length : 0;
  }
  return done;
}

Enqueued write_sets(const EnqueueSets& op, index_t begin, index_t end, char* scratch) {
  if (op.keys.dtype == DType::f64) return write_sets_as<double>(op, begin, end, (double*)scratch);
  return write_sets_as<float>(op, begin, end, (float*)scratch);
}

Enqueued write(const Enqueue& op, index_t begin, index_t end, char* scratch) {
  if (op.keys.dtype == DType::f64) return write_keys<double>(op, begin, end, (double*)scratch);
  return write_keys<float>(op, begin, end, (float*)scratch);
}

index_t scratch_bytes(index_t dim) { return round_up(dim, kAlign) * 8; }

}  // namespace

const EnqueueOps enqueue_ops = {scratch_bytes, write, write_sets};

}  // namespace SEDE_ISA
}  // namespace sede
