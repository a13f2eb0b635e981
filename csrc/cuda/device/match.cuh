// Which columns count for a row.
#pragma once

#include "numbers.cuh"

namespace sede_cuda {

// In a bank an id of -1 is an empty slot; in a batch it is unknown: a negative, never a positive.
template <class Place>
__device__ __forceinline__ bool counts(int select, bool in_batch, bool ids_of_rows,
                                       bool ids_of_cols, Place row, Place col, Place total,
                                       index_t row_id, index_t col_id) {
  bool inside = col < total;
  if (in_batch) inside = inside && row != col;
  if (ids_of_cols && (!in_batch || select == positive)) inside = inside && col_id != kEmpty;
  const bool both = ids_of_rows && ids_of_cols;
  if (select == positive) return inside && both && row_id == col_id;
  if (select == mask && both)
    inside = inside && (row_id != col_id || (in_batch && col_id == kEmpty));
  return inside;
}

__device__ __forceinline__ bool counts(const Match& match, index_t row, index_t col, index_t total,
                                       index_t row_id) {
  const bool cols = match.bank_ids != nullptr && col < total;
  return counts(match.select, match.in_batch != 0, match.query_ids != nullptr,
                match.bank_ids != nullptr, row, col, total, row_id,
                cols ? match.bank_ids[col] : 0);
}

}  // namespace sede_cuda
