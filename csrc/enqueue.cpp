// Driver of the ring write: blocks of keys over the threads; every key has a slot of its own.
#include <algorithm>

#include "dispatch.h"
#include "drivers.h"
#include "parallel.h"
#include "plan.h"

namespace sede {

void enqueue(const Enqueue& op) {
  const EnqueueOps& ops = *kernels().enqueue;
  const index_t keys = op.keys.rows, dim = std::max<index_t>(op.keys.cols, 1);
  if (keys == 0) return;
  constexpr index_t kTaskElements = 1 << 16;  // less is not worth a thread
  const index_t block = std::max<index_t>(kTaskElements / dim, 1);
  const index_t tasks = (keys + block - 1) / block;
  TaskCounter counter(tasks);
  const index_t scratch_bytes = ops.scratch(op.keys.cols);
  run_workers(tasks, [&] {
    Buffer scratch(scratch_bytes);
    for (index_t task; counter.take(task);)
      ops.write(op, task * block, std::min(keys, (task + 1) * block), scratch.get());
  });
}

}  // namespace sede
