// Driver of the similarity's epilogue. Each row set is independent in the forward; the backward's
// sums over row sets are kept apart in a number of blocks that depends on the shape alone.
#include <algorithm>

#include "dispatch.h"
#include "fragments.h"
#include "parallel.h"
#include "plan.h"

namespace sede {
namespace {

index_t scratch_bytes(const CrossAttention& op) {
  index_t longest = 0;
  for (index_t n = 0; n < op.sets; ++n)
    longest = std::max(longest, op.starts[n + 1] - op.starts[n]);
  return kernels().cross->scratch(op, longest);
}

}  // namespace

void cross_attention(const CrossAttention& op) {
  const CrossOps& ops = *kernels().cross;
  const index_t bytes = scratch_bytes(op);
  TaskCounter counter(op.sets);
  run_workers(op.sets, [&] {
    index_t set;
    if (!counter.take(set)) return;
    Buffer scratch(bytes);
    do {
      ops.forward(op, set, scratch.get());
    } while (counter.take(set));
  });
}

void cross_attention_backward(const CrossAttention& op, index_t blocks) {
  const CrossOps& ops = *kernels().cross;
  const index_t bytes = scratch_bytes(op);
  TaskCounter counter(blocks);
  run_workers(blocks, [&] {
    index_t block;
    if (!counter.take(block)) return;
    Buffer scratch(bytes);
    do {
      const index_t end = op.sets * (block + 1) / blocks;
      for (index_t set = op.sets * block / blocks; set < end; ++set)
        ops.backward(op, set, block, scratch.get());
    } while (counter.take(block));
  });
}

}  // namespace sede
