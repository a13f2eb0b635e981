// The weighted InfoNCE of given scores and its gradient.
#pragma once

#include "info_nce.h"

namespace sede {

// What is kept of each row: the rows of a table [kScoreTable][B], SCORE_TABLE of score_types.py.
enum ScoreTable : int {
  kScoreLoss, kScorePositive, kScoreLogNegatives, kScoreHardest, kScorePositiveGrad,
  kScoreTemperatureGrad, kScoreHardnessGrad, kScoreShift, kScoreGrad = kScoreShift + 2,
  kScoreExtraMost = kScoreGrad + 2, kScoreExtraShift, kScoreExtraGrad,
  kScoreTable = kScoreExtraGrad + 2
};

// Tensors of a call. Void pointers are float, or double when the scores are fp64.
struct GivenScores {
  Matrix scores;                 // [B][N]
  Matrix positive;               // [B][1]; without data key i is that of query i
  const unsigned char* valid;    // [B][N] or null
  index_t valid_row, valid_col;
  const index_t* ids;            // [B] or null
  const index_t* key_ids;        // [N] or null
  void* table;                   // [kScoreTable][B]
};

// loss: [B] or one number. negatives, hardest_column: [B].
void score_info_nce(const InfoNceRule& rule, const GivenScores& given, void* loss,
                    index_t* negatives, index_t* hardest_column);

struct ScoreGrads {
  Matrix scores;    // like the scores, or without data: not wanted
  Matrix positive;  // [B][1] likewise
  void *temperature, *hardness;  // one number or null
};

// grad: of the loss, [B] (step 1) or one number (step 0).
void score_info_nce_backward(const InfoNceRule& rule, const GivenScores& given, const void* grad,
                             index_t grad_step, const ScoreGrads& out);

}  // namespace sede
