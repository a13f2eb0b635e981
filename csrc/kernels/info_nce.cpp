// Row by row: the similarity with the positive, the finished gradient, its scaling in the backward.
#include "info_nce_api.h"
#include "narrow.h"
#include "table.h"

namespace sede {
namespace SEDE_ISA {
namespace {

constexpr index_t kChains = 16;  // sums that do not wait for each other

// Exact products of floats, added in double.
template <class A, class B>
SEDE_INLINE double dot(const A* a, index_t a_step, const B* b, index_t b_step, index_t dim) {
  double sum[kChains] = {};
  index_t d = 0;
  if (a_step == 1 && b_step == 1)
    for (; d + kChains <= dim; d += kChains)
      for (index_t n = 0; n < kChains; ++n) sum[n] += double(widen(a[d + n])) * double(widen(b[d + n]));
  double total = 0;
  for (; d < dim; ++d) total += double(widen(a[d * a_step])) * double(widen(b[d * b_step]));
  for (index_t n = 0; n < kChains; ++n) total += sum[n];
  return total;
}

template <class T>
void dots(const Matrix& a, const Matrix& b, index_t begin, index_t end, T* out) {
  with_type(a.dtype, a.data, [&](auto* left) {
    with_type(b.dtype, b.data, [&](auto* right) {
      for (index_t i = begin; i < end; ++i)
        out[i] = T(dot(left + i * a.row_stride, a.col_stride, right + i * b.row_stride,
                       b.col_stride, a.cols));
    });
  });
}

// out[d] = scale row[d] + (out[d] or nothing).
template <class T, class S>
SEDE_INLINE void add_row(T scale, const S* row, index_t step, T* out, index_t dim, bool first) {
  if (step == 1) {
    for (index_t d = 0; d < dim; ++d) out[d] = scale * T(widen(row[d])) + (first ? T(0) : out[d]);
  } else {
    for (index_t d = 0; d < dim; ++d)
      out[d] = scale * T(widen(row[d * step])) + (first ? T(0) : out[d]);
  }
}

template <class T>
void combine(const CombineCall<T>& call, index_t begin, index_t end) {
  const index_t dim = call.rows.cols;
  for (index_t i = begin; i < end; ++i) {
    T* out = call.out + i * dim;
    for (int n = 0; n < call.parts; ++n)
      add_row(call.weight[n][i], call.part[n] + i * dim, 1, out, dim, n == 0);
    with_type(call.rows.dtype, call.rows.data, [&](auto* rows) {
      add_row(call.own[i], rows + i * call.rows.row_stride, call.rows.col_stride, out, dim,
              call.parts == 0);
    });
  }
}

// `added` may be the row that is written: compilers make vectors of a loop that says so.
template <class T, class S, class O>
SEDE_INLINE void scale_row(T scale, const S* row, index_t step, const T* added, O* out,
                           index_t dim) {
  if (step == 1 && !added)
    for (index_t d = 0; d < dim; ++d) narrow(scale * T(widen(row[d])), out[d]);
  else if (step == 1 && static_cast<const void*>(added) == out)
    for (index_t d = 0; d < dim; ++d) narrow(scale * T(widen(row[d])) + T(widen(out[d])), out[d]);
  else if (step == 1)
    for (index_t d = 0; d < dim; ++d) narrow(scale * T(widen(row[d])) + added[d], out[d]);
  else
    for (index_t d = 0; d < dim; ++d)
      narrow(scale * T(widen(row[d * step])) + (added ? added[d] : T(0)), out[d]);
}

template <class T>
void scale(const ScaleCall<T>& call, index_t begin, index_t end) {
  const Matrix& m = call.rows;
  with_type(m.dtype, m.data, [&](auto* rows) {
    with_type(call.out_dtype, static_cast<const void*>(call.out), [&](auto* typed) {
      auto* out = const_cast<std::remove_const_t<std::remove_pointer_t<decltype(typed)>>*>(typed);
      for (index_t i = begin; i < end; ++i) {
        const T grad = call.grad[i * call.grad_step];
        scale_row(call.weight ? grad * call.weight[i] : grad, rows + i * m.row_stride,
                  m.col_stride, call.added ? call.added + i * m.cols : nullptr, out + i * m.cols,
                  m.cols);
      }
    });
  });
}

}  // namespace

const InfoNceOps<float> info_nce_f32 = {dots<float>, combine<float>, scale<float>};
const InfoNceOps<double> info_nce_f64 = {dots<double>, combine<double>, scale<double>};

}  // namespace SEDE_ISA
}  // namespace sede
