// What the host hands to the kernels of the weighted InfoNCE of given scores.
#pragma once

#include "args.h"

namespace sede_cuda {

// The rows of a table [kScoreTable][B], as SCORE_TABLE of sede_kernels/score_types.py names them.
enum ScoreTable : int {
  kScoreLoss, kScorePositive, kScoreLogNegatives, kScoreHardest, kScorePositiveGrad,
  kScoreTemperatureGrad, kScoreHardnessGrad, kScoreShift, kScoreGrad = kScoreShift + 2,
  kScoreExtraMost = kScoreGrad + 2, kScoreExtraShift, kScoreExtraGrad,
  kScoreTable = kScoreExtraGrad + 2
};

// Scores of B queries with N keys, and what a key is to a query.
struct Scores {
  Matrix scores;               // [B, N]; -inf: neither
  Matrix positive;             // [B, 1], or no data: key i is that of query i
  const unsigned char* valid;  // [B, N] or null: which keys may count
  index_t valid_row, valid_col;
  const index_t *ids, *key_ids;  // [B], [N] or null; a key of id -1 is none
  int keep, further;             // keys of the query's id are negatives, or further positives
  int weighted, normalized, detached;
  Scalars scalars;
};

struct ScoreForward {
  Scores given;
  float weight;  // of a row in the loss
  int reduced;   // the loss is the sum over rows; else loss[row]
  float *loss, *table;
  index_t *count, *column;
  int* slots;  // [1 + B], the first one 0 and left so
};

struct ScoreBackward {
  Scores given;
  const float* upstream;  // [B], or one with a step of 0
  index_t step;
  const float* table;
  void *scores, *positive;  // gradients or null
  index_t row_stride, col_stride;
  float *temperature, *hardness;  // [] or null
};
constexpr int kScoreColumns = 1024;  // of a block of the backward

}  // namespace sede_cuda
