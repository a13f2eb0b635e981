// Driver of erasing: blocks of rows over the threads. Rows are independent, so the result does not
// depend on how they are shared out.
#include <algorithm>

#include "dispatch.h"
#include "fragments.h"
#include "parallel.h"
#include "plan.h"

namespace sede {
namespace {

// Enough rows for a task to outweigh taking it.
constexpr index_t kTaskElements = 16384;

template <class Op>
void run(const Op& op, void (*rows)(const Op&, index_t, index_t, char*)) {
  if (op.rows <= 0 || op.length <= 0) return;
  const index_t block = std::max<index_t>(1, kTaskElements / op.length);
  const index_t tasks = (op.rows + block - 1) / block;
  const index_t bytes = kernels().erase->scratch(op.length);
  TaskCounter counter(tasks);
  run_workers(tasks, [&] {
    index_t task;
    if (!counter.take(task)) return;
    Buffer scratch(bytes);
    do {
      rows(op, task * block, std::min(op.rows, (task + 1) * block), scratch.get());
    } while (counter.take(task));
  });
}

}  // namespace

void erase(const EraseForward& op) { run(op, kernels().erase->forward); }
void erase_backward(const EraseBackward& op) { run(op, kernels().erase->backward); }

}  // namespace sede
