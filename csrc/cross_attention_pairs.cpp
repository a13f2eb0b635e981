// Driver of the similarity of chosen pairs: a task is a batch row with all its candidates, so that
// gradients of a side they share are added by one thread.
#include "dispatch.h"
#include "fragments.h"
#include "parallel.h"
#include "plan.h"

namespace sede {
namespace {

void each_row(const CrossAttentionPairs& op,
              void (*run)(const CrossAttentionPairs&, index_t, char*)) {
  const index_t bytes = kernels().cross_attention_pairs->scratch(op);
  TaskCounter counter(op.batch);
  run_workers(op.batch, [&] {
    index_t row;
    if (!counter.take(row)) return;
    Buffer scratch(bytes);
    do {
      run(op, row, scratch.get());
    } while (counter.take(row));
  });
}

}  // namespace

void cross_attention_pairs(const CrossAttentionPairs& op) {
  each_row(op, kernels().cross_attention_pairs->forward);
}

void cross_attention_pairs_backward(const CrossAttentionPairs& op) {
  each_row(op, kernels().cross_attention_pairs->backward);
}

}  // namespace sede
