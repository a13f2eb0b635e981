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

// Keys begin .. end of the call; x holds one key, padded with zeros to whole vectors.
template <class T>
void write_keys(const Enqueue& op, index_t begin, index_t end, T* x) {
  using Vec = typename Simd<T>::Vec;
  constexpr index_t W = Simd<T>::width;
  const index_t dim = op.rows.cols, padded = round_up(dim, W), size = op.rows.rows;
  for (index_t d = dim; d < padded; ++d) x[d] = T(0);
  for (index_t n = begin; n < end; ++n) {
    const index_t slot = (op.first_slot + n) % size;
    read_row(op.keys, n, x, 1);
    Vec squares{}, largest{};
    for (index_t d = 0; d < padded; d += W) {
      const Vec v = load<Vec>(x + d), magnitude = v < T(0) ? -v : v;
      squares += v * v;
      largest = magnitude > largest ? magnitude : largest;
    }
    const T square = total<T>(squares);
    T factor = T(1);
    const T off = square - T(1);
    if (op.normalize && square != T(0) && !((off < T(0) ? -off : off) <= T(1e-6)))
      factor = T(1) / T(__builtin_sqrt(double(square)));
    if (op.row_scale) {
      T peak = T(0);
      for (int lane = 0; lane < W; ++lane) peak = largest[lane] > peak ? largest[lane] : peak;
      // A NaN anywhere makes the squares NaN: the whole row then reads as NaN.
      const T scale = square == square ? peak * factor / T(127) : square;
      op.row_scale[slot] = float(scale);
      factor = scale == T(0) ? T(0) : factor / scale;
    }
    for (index_t d = 0; d < padded; d += W) store(x + d, load<Vec>(x + d) * factor);
    with_type(op.rows.dtype, op.rows.data, [&](auto* data) {
      auto* row = const_cast<std::remove_const_t<std::remove_pointer_t<decltype(data)>>*>(data) +
                  slot * op.rows.row_stride;
      const index_t step = op.rows.col_stride;
      if (step == 1)
        for (index_t d = 0; d < dim; ++d) narrow(x[d], row[d]);
      else
        for (index_t d = 0; d < dim; ++d) narrow(x[d], row[d * step]);
    });
    op.ids[slot] = op.key_ids ? op.key_ids[n] : -2;
  }
}

void write(const Enqueue& op, index_t begin, index_t end, char* scratch) {
  if (op.keys.dtype == DType::f64)
    write_keys<double>(op, begin, end, (double*)scratch);
  else
    write_keys<float>(op, begin, end, (float*)scratch);
}

index_t scratch_bytes(index_t dim) { return round_up(dim, kAlign) * 8; }

}  // namespace

const EnqueueOps enqueue_ops = {scratch_bytes, write};

}  // namespace SEDE_ISA
}  // namespace sede
