// Region-word similarity after the product S: plain structs and the functions of one instruction
// set. One side's sets ("lanes") are interleaved, the other's ("rows") are packed one after another:
// S[row][fragment][lane], so that nothing but sums over all images ever crosses vector lanes.
#pragma once

#include "erase_api.h"

namespace sede {

enum class Aggregate : int { lse = 0, mean = 1, max = 2, sum = 3 };

struct CrossAttention {
  const float* s;               // [rows][fragments][lanes]
  index_t sets, fragments, lanes;  // lanes: a multiple of 16
  const index_t* starts;        // [sets + 1]: rows of each row set
  const index_t* lane_lengths;  // [lanes], 0 for lanes that hold no set
  bool lane_source;             // the lanes are attended to by the rows (else: the other way)
  const float* gram;            // of the sources: [fragments][fragments][lanes] or [sets][L][L]
  index_t row_gram;             // L
  const float *source_norm, *source_mass;  // |v_i| and sum_k |g_ik|: [fragments][lanes] or [sets][L]
  const float* query_norm;      // of the queries: [rows] or [fragments][lanes]
  float smoothing;
  Aggregate aggregate;
  float aggregate_scale;
  bool erase;
  EraseRule rule;
  float* out;                   // [sets][lanes], forward only
  std::int32_t* lost;           // [sets][lanes]: not 0 where the Gram form loses digits; such a pair
                                // has any similarity and adds nothing to the gradients

  // Backward only. The Gram gradient is left in its lower triangle, the diagonal halved, so that
  // adding the transpose completes it.
  const float* grad;            // [sets][lanes]
  float* ds;                    // [rows][fragments][lanes], may be s
  float* d_gram;                // added to; lane sources: [blocks] of it, one a task; null: not wanted
  float* d_norm;                // factor of the query in its own gradient, added to; lane queries:
                                // [blocks] of it
};

struct CrossOps {
  index_t (*scratch)(const CrossAttention& op, index_t longest);  // bytes a thread needs
  void (*forward)(const CrossAttention& op, index_t set, char* scratch);
  void (*backward)(const CrossAttention& op, index_t set, index_t block, char* scratch);
};

}  // namespace sede
