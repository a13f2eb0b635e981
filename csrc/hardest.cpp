// Driver of the top-k: a heap a query and slice, merged at the end.
#include <algorithm>
#include <limits>
#include <vector>

#include "dispatch.h"
#include "drivers.h"
#include "parallel.h"
#include "plan.h"

namespace sede {
namespace {

template <class T>
struct Candidate {
  T value;
  index_t index;

  // NaN first, then by value, then the lowest index.
  bool operator<(const Candidate& other) const {
    const bool odd = value != value, other_odd = other.value != other.value;
    if (odd != other_odd) return odd;
    if (!odd && value != other.value) return value > other.value;
    return index < other.index;
  }
};

template <class T>
void run(const BankLse& op, index_t k, T* values, index_t* indices, const BankOps<T>& ops,
         const HardestOps<T>& hardest) {
  const index_t queries = op.query.rows, dim = op.bank.cols, rows = op.bank.rows;
  if (queries == 0 || k == 0) return;
  const index_t entry = index_t(sizeof(T) + sizeof(index_t));
  const index_t wanted = std::min(k, std::max<index_t>(rows, 1));
  const Plan plan =
      make_plan(queries, rows, dim, ops.query_bytes, ops.panel, queries * wanted * entry);
  index_t longest = 1;
  for (index_t s = 0; s < plan.slices; ++s) {
    const auto range = plan.slice(s, rows);
    longest = std::max(longest, range.second - range.first);
  }
  const index_t kept = std::min(wanted, longest);
  Buffer packed(round_up(queries, ops.panel) * dim * ops.query_bytes);
  Buffer found_values(plan.slices * queries * kept * index_t(sizeof(T)));
  Buffer found_indices(plan.slices * queries * kept * index_t(sizeof(index_t)));
  Buffer found(plan.slices * queries * index_t(sizeof(index_t)));
  ops.pack(op.query, 0, queries, packed.get());

  TaskCounter slicing(plan.tasks());
  const index_t scratch_bytes = hardest.scratch(op, plan.query_block, plan.tiling);
  run_workers(plan.tasks(), [&] {
    Buffer scratch(scratch_bytes);
    for (index_t task; slicing.take(task);) {
      const index_t n = task / plan.query_blocks;
      HardestCall<T> call;
      call.op = &op;
      call.query_begin = task % plan.query_blocks * plan.query_block;
      call.queries = std::min(plan.query_block, queries - call.query_begin);
      call.packed_query = packed.get() + call.query_begin * dim * ops.query_bytes;
      call.bank_begin = plan.slice(n, rows).first;
      call.bank_end = plan.slice(n, rows).second;
      call.tiling = plan.tiling;
      call.k = kept;
      const index_t at = n * queries + call.query_begin;
      call.values = found_values.as<T>() + at * kept;
      call.indices = found_indices.as<index_t>() + at * kept;
      call.found = found.as<index_t>() + at;
      call.scratch = scratch.get();
      hardest.slice(call);
    }
  });

  std::vector<Candidate<T>> all;
  for (index_t i = 0; i < queries; ++i) {
    all.clear();
    for (index_t s = 0; s < plan.slices; ++s) {
      const index_t at = s * queries + i;
      for (index_t n = 0; n < found.as<index_t>()[at]; ++n)
        all.push_back({found_values.as<T>()[at * kept + n],
                       found_indices.as<index_t>()[at * kept + n]});
    }
    const index_t have = std::min(k, index_t(all.size()));
    std::partial_sort(all.begin(), all.begin() + have, all.end());
    for (index_t n = 0; n < k; ++n) {
      values[i * k + n] = n < have ? all[std::size_t(n)].value : -std::numeric_limits<T>::infinity();
      indices[i * k + n] = n < have ? all[std::size_t(n)].index : -1;
    }
  }
}

}  // namespace

void hardest(const BankLse& op, index_t k, void* values, index_t* indices) {
  const Kernels& isa = kernels();
  if (op.query.dtype == DType::f64)
    return run(op, k, static_cast<double*>(values), indices, *isa.bank_f64, *isa.hardest_f64);
  run(op, k, static_cast<float*>(values), indices, *isa.bank_f32, *isa.hardest_f32);
}

}  // namespace sede
