// The weighted InfoNCE of given scores: plain structs and the functions of one instruction set.
#pragma once

#include "api.h"

namespace sede {

// Scores of B queries with N keys, and what a key is to a query.
struct ScoreCall {
  Matrix scores;                 // [B][N] of f32, f64, bf16 or f16; -inf: neither
  const unsigned char* valid;    // [B][N] or null: which keys may count
  index_t valid_row, valid_col;  // its strides
  const index_t* ids;            // [B] or null
  const index_t* key_ids;        // [N] or null; -1: no key
  bool own;                      // key i is that of query i, and so neither
  bool keep, further;            // keys of the query's id are negatives, or further positives
  double exponent[2];            // of the negatives: 1 / tau + beta, and beta
  int exponents;
  double inverse;                // 1 / tau: of further positives
  bool moments;
};

// Sums over the chosen keys of a row, relative to the largest score.
struct ScoreSums {
  double most;       // that score, -inf without one
  index_t column;    // where it is, -1
  index_t count;
  double sum[2];     // of e^{c (s - most)}
  double moment[2];  // of those, times s - most
};

struct ScoreRow {
  ScoreSums negatives, further;  // the latter at 1 / tau and 0
};

// What the derivatives of a row's scores are made of; see SCORE_TABLE in score_types.py.
struct ScoreFactors {
  double hardest, grad[2], shift[2];
  double extra_most, extra_shift, extra_grad, extra_grad_1;
  double positive;
};

struct ScoreOps {
  index_t (*scratch)(index_t rows);  // bytes for a block of so many rows
  // Sums of rows begin .. end; out[0] is of row begin.
  void (*sums)(const ScoreCall& call, index_t begin, index_t end, char* scratch, ScoreRow* out);
  // The gradient of the scores of rows begin .. end; factors[0] is of row begin.
  void (*gradient)(const ScoreCall& call, const ScoreFactors* factors, index_t begin, index_t end,
                   char* scratch, const Matrix& out);
  // A column of any dtype.
  void (*read)(const Matrix& column, double* out);
  void (*write)(const double* values, const Matrix& column);
};

}  // namespace sede
