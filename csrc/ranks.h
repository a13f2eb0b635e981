// The ranks of retrieval on whole matrices: similarities and how many lie below a bar, both ways.
#pragma once

#include "kernels/api.h"

namespace sede {

// Rows of both sides and what their similarities are compared with. All typed void are float, or
// double when `dtype` is fp64.
struct Bars {
  const void* rows;     // [N]
  const void* columns;  // [M]
  index_t* row_below;      // [N]; added to
  index_t* column_below;   // [M]; added to
};

// scores [N][M].
void block_scores(const Matrix& rows, const Matrix& columns, DType dtype, void* scores);

// How many of a row's similarities lie below its bar, and of a column's below the column's: those that
// block_scores() gives, to the bit. NaN is not below.
void count_below(const Matrix& rows, const Matrix& columns, DType dtype, const Bars& bars);

}  // namespace sede
