// Late interaction after the product S of sources and queries: plain structs and the functions of one
// instruction set. Each query fragment (a column of S) takes its nearest source of every set (some rows
// of S); what becomes of the scores is the caller's.
#pragma once

#include "api.h"

namespace sede {

// The largest of each column among the rows of each set, and the first row that has it. NaN is the
// largest of all.
struct Nearest {
  const float* s;                // [rows][columns]
  index_t sets, columns;
  const index_t *begin, *count;  // [sets]: first row and rows of each; 0 rows: score 0
  float* score;                  // [sets], stride apart, [columns]
  std::int32_t* source;          // like score: counted from the set's first row
  index_t stride;
};

// Gradients of the sides from those of the scores. Groups of sets have columns of their own. A share
// of 0, or one beyond its set, adds nothing.
struct NearestBackward {
  index_t groups, sets, columns, dim;  // of a group; dim: a multiple of 16
  const index_t *begin, *count;        // [groups][sets]: as above, in `rows`
  const float *rows, *queries;         // [rows][dim], [groups][columns][dim]
  const float* share;                  // [groups][sets][columns]: gradient of each score
  const std::int32_t* source;          // like share
  float *d_rows, *d_queries;           // like the sides, added to; null: not wanted
};

struct NearestOps {
  index_t chunk;  // elements of a fragment that a backward task takes
  void (*forward)(const Nearest& op, index_t set, index_t begin, index_t end);
  // Columns begin .. end of a group, elements from `at` on.
  void (*queries)(const NearestBackward& op, index_t group, index_t begin, index_t end, index_t at);
  // All rows of one of groups x sets.
  void (*rows)(const NearestBackward& op, index_t set, index_t at);
};

}  // namespace sede
