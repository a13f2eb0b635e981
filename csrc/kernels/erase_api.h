// Attention-guided erasing: plain structs and the functions of one instruction set.
#pragma once

#include "api.h"

namespace sede {

enum class Rule : int { mean = 0, prob = 1, absolute = 2, relative = 3, topk = 4, quantile = 5 };

struct EraseRule {
  Rule rule;
  double threshold;
  index_t keep_min;
  bool low;          // erase what is weakly attended (else: what is strongly attended)
  bool renormalize;
};

// Contiguous rows [rows][length] of f32, bf16 or f16.
struct EraseForward {
  const void* attention;
  void* out;                  // like attention
  unsigned char* mask;        // 1: kept
  const index_t* lengths;     // [rows] or null
  index_t rows, length;
  DType dtype;
  EraseRule rule;
};

struct EraseBackward {
  const void *grad, *attention;
  const unsigned char* mask;
  void* out;
  index_t rows, length;
  DType dtype;
  bool renormalize;
};

struct EraseOps {
  index_t (*scratch)(index_t length);  // bytes a thread needs, 64-byte aligned
  void (*forward)(const EraseForward& op, index_t begin, index_t end, char* scratch);
  void (*backward)(const EraseBackward& op, index_t begin, index_t end, char* scratch);
};

}  // namespace sede
