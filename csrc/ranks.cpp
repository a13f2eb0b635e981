// Driver of the ranks: blocks of rows times slices of columns over the threads. Counts are integers, so
// their sums do not depend on the order.
#include "ranks.h"

#include <algorithm>
#include <mutex>
#include <stdexcept>

#include "dispatch.h"
#include "parallel.h"
#include "plan.h"

namespace sede {
namespace {

template <class T>
void run(const BankLse& op, const BankOps<T>& ops, const RankOps<T>& ranks, T* scores,
         const Bars& bars) {
  const index_t queries = op.query.rows, rows = op.bank.rows, dim = op.bank.cols;
  if (queries == 0 || rows == 0) return;
  Shape shape = shape_of(op, ops);
  shape.in_place = false;  // rows in whole vectors are never few
  const Plan plan = make_plan(shape, 0);
  index_t longest = 0;
  for (index_t s = 0; s < plan.slices; ++s) {
    const auto range = plan.slice(s, rows);
    longest = std::max(longest, range.second - range.first);
  }
  // Lanes count in integers of the size of T.
  if (longest > index_t(0x7fffffff)) throw std::length_error("ranks: a block has too many columns.");
  Buffer packed(round_up(queries, ops.panel) * dim * ops.query_bytes);
  ops.pack(op.query, 0, queries, packed.get());

  std::mutex adding;
  TaskCounter slicing(plan.tasks());
  const index_t scratch_bytes = ranks.scratch(op, plan.query_block, plan.tiling);
  run_workers(plan.tasks(), [&] {
    Buffer scratch(scratch_bytes);
    Buffer below((plan.query_block + longest) * index_t(sizeof(index_t)));
    for (index_t task; slicing.take(task);) {
      RankCall<T> call;
      call.op = &op;
      call.query_begin = task % plan.query_blocks * plan.query_block;
      call.queries = std::min(plan.query_block, queries - call.query_begin);
      call.packed_query = packed.get() + call.query_begin * dim * ops.query_bytes;
      const auto range = plan.slice(task / plan.query_blocks, rows);
      call.bank_begin = range.first;
      call.bank_end = range.second;
      call.tiling = plan.tiling;
      call.scores = scores;
      call.query_bar = static_cast<const T*>(bars.rows);
      call.bank_bar = static_cast<const T*>(bars.columns);
      call.query_below = below.as<index_t>();
      call.bank_below = below.as<index_t>() + plan.query_block;
      call.scratch = scratch.get();
      ranks.slice(call);
      if (scores) continue;
      const std::lock_guard<std::mutex> lock(adding);
      for (index_t i = 0; i < call.queries; ++i)
        bars.row_below[call.query_begin + i] += call.query_below[i];
      for (index_t j = call.bank_begin; j < call.bank_end; ++j)
        bars.column_below[j] += call.bank_below[j - call.bank_begin];
    }
  });
}

void run(const Matrix& rows, const Matrix& columns, DType dtype, void* scores, const Bars& bars) {
  BankLse op{};
  op.query = rows;
  op.bank = columns;
  op.select = Select::keep;
  const Kernels& isa = kernels();
  if (dtype == DType::f64)
    return run(op, *isa.bank_f64, *isa.ranks_f64, static_cast<double*>(scores), bars);
  run(op, *isa.bank_f32, *isa.ranks_f32, static_cast<float*>(scores), bars);
}

}  // namespace

void block_scores(const Matrix& rows, const Matrix& columns, DType dtype, void* scores) {
  // A lane is a query, and so the columns are the queries: lanes are written side by side.
  run(columns, rows, dtype, scores, {});
}

void count_below(const Matrix& rows, const Matrix& columns, DType dtype, const Bars& bars) {
  run(rows, columns, dtype, nullptr, bars);
}

}  // namespace sede
