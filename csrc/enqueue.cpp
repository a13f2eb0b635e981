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

// `count` entries of `elements` each in blocks over the threads; write(begin, end, scratch).
template <class Write>
Enqueued in_blocks(index_t count, index_t elements, index_t dim, const Write& write) {
  if (count == 0) return {0, 0};
  constexpr index_t kTaskElements = 1 << 16;  // less is not worth a thread
  const index_t block = std::max<index_t>(kTaskElements / std::max<index_t>(elements, 1), 1);
  const index_t tasks = (count + block - 1) / block;
  TaskCounter counter(tasks);
  const index_t scratch_bytes = kernels().enqueue->scratch(dim);
  std::atomic<index_t> filled{0}, rejected{0};
  run_workers(tasks, [&] {
    Buffer scratch(scratch_bytes);
    for (index_t task; counter.take(task);) {
      const Enqueued part =
          write(task * block, std::min(count, (task + 1) * block), scratch.get());
      filled += part.filled, rejected += part.rejected;
    }
  });
  return {filled, rejected};
}

void check_place(const Ring& ring, index_t size) {
  check_inside("ptr", *ring.ptr, size, ")");
  check_inside("count", *ring.count, size + 1, "]");
}

// Slot of the first of the last `kept` of `total` entries.
index_t first_slot(const Ring& ring, index_t size, index_t kept, index_t total) {
  return (*ring.ptr + total % size + size - kept) % size;
}

void advance(const Ring& ring, const Enqueued& done, index_t size, index_t total) {
  *ring.ptr = (*ring.ptr + total % size) % size;
  *ring.count = std::min(std::max<index_t>(*ring.count + done.filled, 0), size);
  *ring.rejected += done.rejected;
}

}  // namespace

Enqueued enqueue(const Enqueue& op) {
  return in_blocks(op.keys.rows, op.keys.cols, op.keys.cols,
                   [&](index_t begin, index_t end, char* scratch) {
                     return kernels().enqueue->write(op, begin, end, scratch);
                   });
}

void enqueue(Enqueue op, const Ring& ring, index_t total) {
  const index_t size = op.rows.rows, kept = op.keys.rows;
  if (kept > size || kept > total || op.keys.cols != op.rows.cols)
    throw std::invalid_argument("enqueue: the keys do not fit the ring.");
  check_place(ring, size);
  op.first_slot = first_slot(ring, size, kept, total);
  advance(ring, enqueue(op), size, total);
}

void enqueue_sets(EnqueueSets op, const Ring& ring, index_t total) {
  if (op.sets > op.slots || op.sets > total || op.keys.cols != op.rows.cols ||
      op.keys.rows > op.rows.rows)
    throw std::invalid_argument("enqueue: the sets do not fit the ring.");
  for (index_t n = 0; op.key_lengths && n < op.sets; ++n)
    if (op.key_lengths[n] < 0 || op.key_lengths[n] > op.keys.rows)
      throw std::invalid_argument("enqueue: a length is not one of the sets.");
  check_place(ring, op.slots);
  op.first_slot = first_slot(ring, op.slots, op.sets, total);
  const Enqueued done = in_blocks(op.sets, op.rows.rows * op.rows.cols, op.rows.cols,
                                  [&](index_t begin, index_t end, char* scratch) {
                                    return kernels().enqueue->write_sets(op, begin, end, scratch);
                                  });
  advance(ring, done, op.slots, total);
}

}  // namespace sede
