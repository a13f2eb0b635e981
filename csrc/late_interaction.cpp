// Driver of late interaction. Every element of a result has one task, which adds in a fixed order.
#include <algorithm>

#include "dispatch.h"
#include "fragments.h"
#include "parallel.h"
#include "plan.h"

namespace sede {
namespace {

constexpr index_t kColumns = 256;       // of a forward task
constexpr index_t kQueryColumns = 16;   // of a backward task

index_t parts(index_t whole, index_t part) { return (whole + part - 1) / part; }

template <class F>
void share_out(index_t tasks, F work) {
  TaskCounter counter(tasks);
  run_workers(tasks, [&] {
    index_t task;
    while (counter.take(task)) work(task);
  });
}

}  // namespace

void nearest(const Nearest& op) {
  const NearestOps& ops = *kernels().nearest;
  const index_t blocks = parts(op.columns, kColumns);
  share_out(op.sets * blocks, [&](index_t task) {
    const index_t begin = task % blocks * kColumns;
    ops.forward(op, task / blocks, begin, std::min(begin + kColumns, op.columns));
  });
}

void nearest_backward(const NearestBackward& op) {
  const NearestOps& ops = *kernels().nearest;
  const index_t chunks = parts(op.dim, ops.chunk), blocks = parts(op.columns, kQueryColumns);
  // The elements outermost, so that those of all fragments that are in use lie in a cache.
  if (op.d_queries) {
    const index_t each = op.groups * blocks;
    share_out(chunks * each, [&](index_t task) {
      const index_t begin = task % blocks * kQueryColumns;
      ops.queries(op, task % each / blocks, begin, std::min(begin + kQueryColumns, op.columns),
                  task / each * ops.chunk);
    });
  }
  if (op.d_rows) {
    const index_t each = op.groups * op.sets;
    share_out(chunks * each,
              [&](index_t task) { ops.rows(op, task % each, task / each * ops.chunk); });
  }
}

}  // namespace sede
