// Where the sums of a row go.
#pragma once

#include "numbers.cuh"

namespace sede_cuda {

// Of the r-th row of a thread, by one lane of those that have it. A full pass has arrays for as many
// exponents as there can be.
template <bool FULL, int E, int M>
__device__ __forceinline__ void write_sums(const Partial& to, int exponents, int part, index_t rows,
                                           int row, int r, const float (&peak)[2],
                                           const int (&count)[2], const int (&index)[2],
                                           const float (&total)[E][2],
                                           const float (&moment)[M][2]) {
  const index_t slot = index_t(part) * rows + row;
  to.peak[slot] = peak[r];
  to.count[slot] = count[r];
  if (FULL && to.index != nullptr) to.index[slot] = index[r];
#pragma unroll
  for (int e = 0; e < E; ++e) {
    if (e >= exponents) break;
    const index_t at = (index_t(part) * exponents + e) * rows + row;
    to.total[at] = total[e][r];
    if (FULL && to.moment != nullptr) to.moment[at] = moment[FULL ? e : 0][r];
  }
}

}  // namespace sede_cuda
