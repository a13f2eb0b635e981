// The weighted InfoNCE: its passes, a launch to finish, one for the gradients.
#pragma once

#include <vector>

#include "../info_nce_args.h"
#include "bank.h"

namespace sede_cuda {

struct LossSide {
  Matrix query, key, bank;  // the bank may have no rows
  const float* row_scale;
  const index_t *bank_ids, *ids;
  const float* limit;  // [B] largest similarity of a negative, or null; a margin gives others
};

struct Loss {
  std::vector<LossSide> sides;  // one or two of as many rows
  InfoNceRule rule;
  Scalars scalars;
  bool limited;  // by the margin
  Number margin;
  int exponents, accumulators, select;
  bool moments, hardest, in_batch, mean, reduced, unit_length, tf32;
  const unsigned char* batch_at;
};

// Where the results go; see InfoNceFinish.
struct LossResults {
  float *loss, *table, *grad;
  index_t *count, *index;
  int* slots;
};

// Each returns the bytes of scratch it needs, and runs when it gets them.
index_t info_nce(const Loss& loss, const LossResults& to, void* memory, Stream stream);

// The upstream gradient, what the forward left, and where the gradients go are in `op`; `through`:
// whether the gradient through in-batch negatives is wanted.
index_t info_nce_backward(const Loss& loss, InfoNceScale op, bool through, void* memory,
                          Stream stream);

}  // namespace sede_cuda
