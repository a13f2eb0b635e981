// Rows of the weighted InfoNCE around its passes over the negatives: plain structs and the functions
// of one instruction set.
#pragma once

#include "api.h"

namespace sede {

// out_i = sum_n weight[n][i] part[n]_i + own[i] row_i, over D columns.
template <class T>
struct CombineCall {
  const T* const* part;    // [parts] matrices [B][D]; out may be the first of them
  const T* const* weight;  // [parts] of [B]
  int parts;
  Matrix rows;             // [B][D]
  const T* own;            // [B]
  T* out;                  // [B][D]
};

// out_i = grad_i weight_i row_i + added_i, in the dtype of the output.
template <class T>
struct ScaleCall {
  Matrix rows;        // [B][D]
  const T* grad;      // [B], or one for all rows
  index_t grad_step;  // between rows; 0: one for all
  const T* weight;    // [B] or null: 1
  const T* added;     // [B][D] or null; may be `out`
  void* out;          // [B][D], contiguous
  DType out_dtype;
};

// All take a range of rows.
template <class T>
struct InfoNceOps {
  void (*dots)(const Matrix& a, const Matrix& b, index_t begin, index_t end, T* out);
  void (*combine)(const CombineCall<T>& call, index_t begin, index_t end);
  void (*scale)(const ScaleCall<T>& call, index_t begin, index_t end);
};

}  // namespace sede
