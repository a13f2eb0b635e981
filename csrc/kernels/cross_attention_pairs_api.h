// Region-word similarity of chosen pairs: plain structs and the functions of one instruction set.
#pragma once

#include "cross_attention_api.h"

namespace sede {

// A query set and `pairs` candidates of its own a batch row; a side of one set serves all of them.
struct CrossAttentionPairs {
  const float *source, *query;  // [batch][source_sets][sources][dim], [batch][query_sets][queries][dim]
  index_t batch, pairs;
  index_t source_sets, query_sets;  // pairs or 1
  index_t sources, queries;         // most fragments of a set
  index_t dim;                      // a multiple of 16
  const index_t *source_lengths, *query_lengths;  // [batch][sets]
  bool contexts;  // form every context, whatever it costs
  float smoothing;
  Aggregate aggregate;
  float aggregate_scale;
  bool erase;
  EraseRule rule;
  float* out;  // [batch][pairs], forward only

  // Backward only.
  const float* grad;           // [batch][pairs]
  float *d_source, *d_query;   // like the sides, added to; null: not wanted
};

struct CrossAttentionPairsOps {
  index_t (*scratch)(const CrossAttentionPairs& op);  // bytes a thread needs
  void (*forward)(const CrossAttentionPairs& op, index_t row, char* scratch);
  void (*backward)(const CrossAttentionPairs& op, index_t row, char* scratch);
};

}  // namespace sede
