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

// bf16 queries on a bf16 or int8 bank, where the processor multiplies pairs of bf16 values.
bool takes_pairs(const BankLse& op);

// The k most similar valid rows of each query, best first, ties to the lowest index; (-inf, -1)
// where there are fewer. NaN is not similar at all. values [B, k] are float or double, indices [B, k].
void hardest(const BankLse& op, index_t k, void* values, index_t* indices);

// Gradients of in-batch negatives; op.bank holds the keys. lse, grad [E, B]; dq, dk [B, D].
void batch_lse_backward(const BankLse& op, const void* lse, const void* grad, void* query_grad,
                        void* key_grad);

Enqueued enqueue(const Enqueue& op);

// Where a ring stands; all are written.
struct Ring {
  index_t* ptr;       // next slot
  index_t* count;     // filled slots
  index_t* rejected;  // keys refused so far
};

// The last of `total` keys, those of `op`, from the ring's pointer on (op.first_slot is set here).
// Throws std::invalid_argument where pointer or count lie outside the ring; nothing is written then.
void enqueue(Enqueue op, const Ring& ring, index_t total);

// The same of sets; also throws where a length is not in [0, L'].
void enqueue_sets(EnqueueSets op, const Ring& ring, index_t total);

// GFLOP/s of register-only fused multiply-adds on `threads` threads at once, for `ms` milliseconds.
double fma_peak_gflops(int threads, double ms);

}  // namespace sede
