// The weighted InfoNCE and its gradient: passes over the negatives, `finish`, `backward`.
#pragma once

#include <vector>

#include "kernels/api.h"

namespace sede {

enum class FalseNegatives : int { mask = 0, positive = 1, keep = 2 };
enum class Reduction : int { none = 0, mean = 1, sum = 2 };

struct InfoNceRule {
  double temperature, hardness;
  bool weighted;         // harder negatives weigh more: the hardness counts
  bool normalize_weights, detach_weights;
  double positive_focus, tau_plus;
  bool has_margin;
  double margin;
  FalseNegatives false_negatives;
  Reduction reduction;
  bool in_batch;         // the other rows' positives are negatives too
  bool moments;          // temperature or hardness gets a gradient
  bool hardest;
  double share;          // of a side in the loss: 1, or 1/2 of two

  int exponents() const { return weighted && normalize_weights ? 2 : 1; }
  int accumulators() const { return exponents() == 2 && !detach_weights ? 2 : 1; }
  bool extra_positives() const { return false_negatives == FalseNegatives::positive; }
};

// What is kept of each row: the rows of a table [kTable][B]. The gradients are those of the reduced
// loss; kLse and what follows serve the gradient of in-batch keys.
enum InfoNceTable : int {
  kLoss, kWeight, kPositive, kLogNegatives, kHardest, kPositiveGrad, kTemperatureGrad,
  kHardnessGrad, kLse, kLseGrad = kLse + 2, kExtraLse = kLseGrad + 2, kExtraGrad = kExtraLse + 2,
  kTable = kExtraGrad + 2
};

// Tensors of one side; void pointers are float, or double when the query is fp64.
struct InfoNceSide {
  Matrix query, positive, bank;  // the bank may have no rows
  const float* row_scale;        // [K] or null
  const index_t* bank_ids;       // [K] or null
  const index_t* ids;            // [B] or null
  const void* limit;             // [B] or null: largest similarity of a negative, not with a margin
  void* table;                   // [kTable][B]
  void* query_grad;              // [B][D] or null: not wanted
  index_t* negatives;            // [B] or null
  index_t* hardest_index;        // [B] or null
  void* scores;                  // of the in-batch pass, see BankLse
};

// Sums over one segment of the negatives: a bank, a shard of one, or the batch.
struct InfoNceSums {
  const void* lse;           // [E][B]
  const void* moment;        // [E][B] or null
  const void* acc;           // [A][B][D] or null
  const index_t* count;      // [B]
  const void* top;           // [B] or null
  const index_t* top_index;  // [B] or null
  bool in_bank;              // top_index is a row of the bank
};

// Rows, weights, statistics and unit gradients from the sums of all segments; adds this side's share
// to loss ([B] or one number). `extra` holds the sums over further positives at 1 / tau and at 0.
void info_nce_finish(const InfoNceRule& rule, const InfoNceSide& side,
                     const std::vector<InfoNceSums>& sums, const std::vector<InfoNceSums>& extra,
                     void* loss);

// All of it: `loss` is written.
void info_nce(const InfoNceRule& rule, const std::vector<InfoNceSide>& sides, void* loss);

struct InfoNceGrads {
  void* query;     // [B][D] in the query's dtype, or null
  void* positive;  // [B][D] in the positive's dtype, or null
};

// grad: of the loss, [B], a step apart, or one number (step 0). temperature, hardness: one number or
// null.
void info_nce_backward(const InfoNceRule& rule, const std::vector<InfoNceSide>& sides,
                       const void* grad, index_t grad_step, const std::vector<InfoNceGrads>& out,
                       void* temperature, void* hardness);

}  // namespace sede
