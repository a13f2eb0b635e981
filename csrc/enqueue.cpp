// Driver of the ring write: blocks of keys over the threads; every key has a slot of its own.
#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "drivers.h"
#include "parallel.h"
#include "plan.h"

namespace sede {
namespace {

void check_inside(const char* name, index_t value, index_t size, const char* bound) {
  if (value >= 0 && value < size) return;
  throw std::invalid_argument("enqueue: " + std::string(name) + " of the bank must lie in [0, " +
                              std::to_string(size - (*bound == ']')) + bound + ", got " +
                              std::to_string(value) +
                              "; its state is damaged: load a checkpoint or call "
                              "reset_parameters().");
}

}  // namespace

Enqueued enqueue(const Enqueue& op) {
  const EnqueueOps& ops = *kernels().enqueue;
  const index_t keys = op.keys.rows, dim = std::max<index_t>(op.keys.cols, 1);
  if (keys == 0) return {0, 0};
  constexpr index_t kTaskElements = 1 << 16;  // less is not worth a thread
  const index_t block = std::max<index_t>(kTaskElements / dim, 1);
  const index_t tasks = (keys + block - 1) / block;
  TaskCounter counter(tasks);
  const index_t scratch_bytes = ops.scratch(op.keys.cols);
  std::atomic<index_t> filled{0}, rejected{0};
  run_workers(tasks, [&] {
    Buffer scratch(scratch_bytes);
    for (index_t task; counter.take(task);) {
      const Enqueued part =
          ops.write(op, task * block, std::min(keys, (task + 1) * block), scratch.get());
      filled += part.filled, rejected += part.rejected;
    }
  });
  return {filled, rejected};
}

void enqueue(Enqueue op, const Ring& ring, index_t total) {
  const index_t size = op.rows.rows, kept = op.keys.rows, start = *ring.ptr;
  if (kept > size || kept > total || op.keys.cols != op.rows.cols)
    throw std::invalid_argument("enqueue: the keys do not fit the ring.");
  check_inside("ptr", start, size, ")");
  check_inside("count", *ring.count, size + 1, "]");
  op.first_slot = (start + total % size + size - kept) % size;
  const Enqueued done = enqueue(op);
  *ring.ptr = (start + total % size) % size;
  *ring.count = std::min(std::max<index_t>(*ring.count + done.filled, 0), size);
  *ring.rejected += done.rejected;
}

}  // namespace sede
