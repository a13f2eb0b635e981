// The ops on whole tensors: tiling, threads, memory, and the combination of partial results.
#pragma once

#include "kernels/api.h"

namespace sede {

struct BankLseOut {
  void* lse;           // [E, B]
  void* moment;        // [E, B] or unused
  void* acc;           // [A, B, D]
  index_t* count;      // [B]
  void* top;           // [B] or unused
  index_t* top_index;  // [B] or unused
};

void bank_lse(const BankLse& op, const BankLseOut& out);

// GFLOP/s of register-only fused multiply-adds on `threads` threads at once, for `ms` milliseconds.
double fma_peak_gflops(int threads, double ms);

}  // namespace sede
