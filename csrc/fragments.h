// Ops on sets of fragments (regions, words): erasing, region-word similarity.
#pragma once

#include "kernels/cross_attention_api.h"
#include "kernels/cross_attention_pairs_api.h"
#include "kernels/late_interaction_api.h"

namespace sede {

void erase(const EraseForward& op);
void erase_backward(const EraseBackward& op);

// The epilogue of the similarity on one block of S. `blocks`: see CrossAttention::d_gram, d_norm.
void cross_attention(const CrossAttention& op);
void cross_attention_backward(const CrossAttention& op, index_t blocks);

// The similarity of chosen pairs, from the fragments on.
void cross_attention_pairs(const CrossAttentionPairs& op);
void cross_attention_pairs_backward(const CrossAttentionPairs& op);

// Late interaction: what follows the product of the sides, and its gradients.
void nearest(const Nearest& op);
void nearest_backward(const NearestBackward& op);

// What becomes of the scores of a set's query fragments. `by_query`: similarities and their gradients lie
// as [groups][query sets][source sets], else the other way round.
struct LateAggregate {
  Aggregate aggregate;
  float scale;
  bool by_query;
};

// All of it, from the fragments on. score and source, for the backward, are [groups][source sets][query
// sets][queries], 0 beyond a length; null: not wanted.
void late_interaction(const LateSets& op, const LateAggregate& how, float* out, float* score,
                      std::int32_t* source);
// d_source and d_query are written; null: not wanted.
void late_interaction_backward(const LateSets& op, const LateAggregate& how, const float* grad,
                               const float* score, const std::int32_t* source, float* d_source,
                               float* d_query);

}  // namespace sede
