// How an op is cut into tasks. The cut depends on the shape alone, never on the number of threads,
// so results are the same to the bit for any number of them.
#pragma once

#include <atomic>
#include <utility>

#include "buffer.h"
#include "kernels/table.h"

namespace sede {

struct Plan {
  Tiling tiling;
  index_t query_block, query_blocks;
  index_t slices;

  // Bank rows of slice n: whole tiles, spread evenly.
  std::pair<index_t, index_t> slice(index_t n, index_t rows) const {
    const index_t tiles = (rows + tiling.bank_rows - 1) / tiling.bank_rows;
    const index_t begin = tiles * n / slices * tiling.bank_rows;
    const index_t end = tiles * (n + 1) / slices * tiling.bank_rows;
    return {begin < rows ? begin : rows, end < rows ? end : rows};
  }
  index_t tasks() const { return query_blocks * slices; }
};

// What a plan depends on.
struct Shape {
  index_t queries, rows, dim;
  index_t element, panel;  // bytes of an element of the packed queries, queries of a panel
  bool in_place;           // few queries on a bank of columns: it is read where it lies
};

// The shape of a pass whose kernels are `ops`.
template <class T>
Shape shape_of(const BankLse& op, const BankOps<T>& ops) {
  const bool columns = op.bank.row_stride == 1 && op.bank.col_stride != 1;
  return {op.query.rows, op.bank.rows, op.bank.cols, ops.query_bytes, ops.panel,
          columns && op.query.rows <= ops.few};
}

// `slice_bytes`: memory each further slice of the whole batch costs.
Plan make_plan(const Shape& shape, index_t slice_bytes);

// For the top-k: slices of many times k rows, each of which finds k candidates of its own, and blocks
// of queries whose candidates, `key` bytes each, stay in a cache.
Plan make_hardest_plan(const Shape& shape, index_t k, index_t key);

inline index_t round_up(index_t n, index_t to) { return (n + to - 1) / to * to; }

// Hands out 0 .. count - 1 to the workers.
class TaskCounter {
 public:
  explicit TaskCounter(index_t count) : count_(count) {}
  bool take(index_t& task) {
    task = next_.fetch_add(1, std::memory_order_relaxed);
    return task < count_;
  }

 private:
  std::atomic<index_t> next_{0};
  const index_t count_;
};

}  // namespace sede
