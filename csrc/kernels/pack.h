// Queries in panels: one query a lane, so that a product reads a vector of them for each column.
#pragma once

#include "dots.h"
#include "slice.h"

namespace sede {
namespace SEDE_ISA {
namespace {

// panel[d][i] = rows[i][d] for up to kPanel rows and `columns` columns; zero beyond the last row.
template <class T>
void pack_panel(const T* rows, index_t stride, index_t count, index_t columns, T* panel) {
  using Vec = typename Simd<T>::Vec;
  constexpr index_t W = Simd<T>::width, P = kPanel<T>;
  const index_t whole = columns / W * W;
  for (index_t v = 0; v < P; v += W) {
    const index_t real = count - v < 0 ? 0 : count - v < W ? count - v : W;
    transpose<Vec>(real ? rows + v * stride : rows, stride, real, whole, panel + v, P);
    for (index_t d = whole; d < columns; ++d)
      for (index_t i = 0; i < W; ++i)
        panel[d * P + v + i] = i < real ? rows[(v + i) * stride + d] : T(0);
  }
}

// Queries begin .. begin + count as panels [panel][d][kPanel], zero beyond the last query.
template <class T>
void pack_queries(const Matrix& m, index_t begin, index_t count, T* out) {
  constexpr index_t P = kPanel<T>, kChunk = 64, kStride = kChunk + kAlign / index_t(sizeof(T));
  const bool in_place = m.dtype == (sizeof(T) == 8 ? DType::f64 : DType::f32) && m.col_stride == 1;
  for (index_t first = 0; first < count; first += P) {
    const index_t rows = count - first < P ? count - first : P;
    T* panel = out + first * m.cols;
    if (in_place) {
      pack_panel((const T*)m.data + (begin + first) * m.row_stride, m.row_stride, rows, m.cols, panel);
      continue;
    }
    // Of another dtype or stride: some columns at a time become dense rows first.
    with_type(m.dtype, m.data, [&](auto* data) {
      T dense[P * kStride];
      for (index_t d = 0; d < m.cols; d += kChunk) {
        const index_t columns = m.cols - d < kChunk ? m.cols - d : kChunk;
        for (index_t i = 0; i < rows; ++i)
          copy_row(data + (begin + first + i) * m.row_stride + d * m.col_stride, m.col_stride,
                   dense + i * kStride, 1, columns);
        pack_panel(dense, kStride, rows, columns, panel + d * P);
      }
    });
  }
}

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
