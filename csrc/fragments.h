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

}  // namespace sede
