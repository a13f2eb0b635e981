// What the host hands to the kernels of the weighted InfoNCE.
#pragma once

#include "args.h"

namespace sede_cuda {

// The rows of a table [kTable][B], as sede_kernels.types.TABLE and csrc/info_nce.h name them.
enum InfoNceTable : int {
  kLoss, kWeight, kPositive, kLogNegatives, kHardest, kPositiveGrad, kTemperatureGrad,
  kHardnessGrad, kLse, kLseGrad = kLse + 2, kExtraLse = kLseGrad + 2, kExtraGrad = kExtraLse + 2,
  kTable = kExtraGrad + 2
};

struct InfoNceRule {
  int weighted, detached;
  int further;      // rows of a query's id in the bank or the batch are positives too
  int debiased;
  float log_tau_plus, log_rest;  // log tau_plus, log(1 - tau_plus)
  float focus;      // rows weigh by (1 - e^{-loss})^focus; 0: alike
};

// One direction: its queries with their keys, and what the passes found of its negatives.
struct InfoNceSide {
  Matrix query, key;
  Partial bank, batch, bank_further, batch_further;  // of no parts: no such segment
  int bank_scaled;  // see Finish
};

struct InfoNceFinish {
  InfoNceSide side[2];
  int sides;
  index_t rows, dim;
  Want want, want_of_batch, further, further_of_batch;
  InfoNceRule rule;
  const unsigned char* batch_at;  // whether the batch counts, or null: it does
  float scale;                    // of every row's weight
  int reduced;       // the loss is the sum over rows; else loss[row]
  float focus;       // of a mean whose weights every row's loss decides; they are left to the backward
  float* loss;
  float* table;      // [sides, kTable, B]
  float* grad;       // [sides, B, D] or null
  index_t* count;    // [sides, B] or null
  index_t* index;    // [sides, B] or null
  int* slots;        // [1 + sides B], the first one 0 and left so
};

// Gradients: what the forward left, times the upstream gradient.
struct InfoNceScale {
  const float* upstream;  // [B], or one with a step of 0
  index_t step;
  int sides;
  index_t rows, dim;
  const float *table, *grad;                 // of the forward
  int focused;                               // their rows are still to be weighted
  const float *added_query, *added_key;      // [sides, B, D] through in-batch negatives, or null
  Matrix query[2];
  void *to_query[2], *to_key[2];             // [B, D], or null: nobody asks
  int query_dtype, key_dtype[2];
  float *to_temperature, *to_hardness;       // [] or null
};

}  // namespace sede_cuda
