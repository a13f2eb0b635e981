// Late interaction, after the product S of sources and queries or together with it: plain structs and the
// functions of one instruction set. Each query fragment (a column of S) takes its nearest source of every
// set (some rows of S); what becomes of the scores is the caller's.
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
  index_t groups, sets, columns, dim;  // of a group
  const index_t *begin, *count;        // [groups][sets]: as above, in `rows`
  const float *rows, *queries;         // [rows][dim], [groups][columns][dim]
  const float* share;                  // [groups][sets][columns]: gradient of each score
  const std::int32_t* source;          // like share
  float *d_rows, *d_queries;           // like the sides, added to; null: not wanted
};

// Both sides as they lie: groups of source sets meet the query sets of their group. All sets of a side
// have as many fragments in memory; those beyond a length are not looked at.
struct LateSets {
  index_t groups, source_sets, query_sets;  // of a group
  index_t sources, queries, dim;            // fragments of a set, elements of a fragment
  const float *source, *query;              // [groups][sets][fragments][dim]
  const index_t *source_lengths, *query_lengths;  // [groups][sets] or null: all are valid
};

struct NearestOps {
  index_t chunk;  // elements of a fragment that a backward task takes
  index_t panel;  // query fragments that are packed together
  void (*forward)(const Nearest& op, index_t set, index_t begin, index_t end);
  // Columns begin .. end of a group, elements from `at` on.
  void (*queries)(const NearestBackward& op, index_t group, index_t begin, index_t end, index_t at);
  // All rows of one of groups x sets.
  void (*rows)(const NearestBackward& op, index_t set, index_t at);
  // `count` fragments of queries from the first on, as panels [panel][dim][fragment].
  void (*pack)(const float* query, index_t count, index_t dim, float* out);
  // Of one source set and those panels: nearest sources, whole panels of them. s: [sources][panel].
  void (*panels)(const LateSets& op, index_t set, const float* packed, index_t count, float* s,
                 float* score, std::int32_t* source);
};

}  // namespace sede
