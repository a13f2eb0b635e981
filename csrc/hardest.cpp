// Driver of the top-k: the best of every slice for each query, merged at the end. Slices tell each
// other how good a row must be, which spares work and never changes a result.
#include <algorithm>
#include <functional>
#include <limits>
#include <stdexcept>
#include <vector>

#include "dispatch.h"
#include "drivers.h"
#include "parallel.h"
#include "plan.h"

namespace sede {
namespace {

// The k largest of some distinct keys, largest first.
template <class Key>
index_t take_largest(std::vector<Key>& keys, index_t k) {
  const auto greater = std::greater<Key>();
  const index_t have = std::min(k, index_t(keys.size()));
  if (have < index_t(keys.size()))
    std::nth_element(keys.begin(), keys.begin() + have, keys.end(), greater);
  std::sort(keys.begin(), keys.begin() + have, greater);
  return have;
}

template <class T>
void run(const BankLse& op, index_t k, T* values, index_t* indices, const BankOps<T>& ops,
         const HardestOps<T>& hardest) {
  using Key = typename Ordered<T>::Key;
  using Value = typename Ordered<T>::Value;
  const index_t queries = op.query.rows, dim = op.bank.cols, rows = op.bank.rows;
  if (queries == 0 || k == 0) return;
  const index_t wanted = std::min(k, std::max<index_t>(rows, 1));
  const Plan plan = make_hardest_plan(shape_of(op, ops), wanted, index_t(sizeof(Key)));
  index_t longest = 1;
  for (index_t s = 0; s < plan.slices; ++s) {
    const auto range = plan.slice(s, rows);
    longest = std::max(longest, range.second - range.first);
  }
  const index_t kept = std::min(wanted, longest);
  const index_t capacity = std::min(kept + std::max<index_t>(kept, 16), longest + 1);
  const index_t packed_row = (dim + ops.group - 1) / ops.group * ops.query_bytes;
  Buffer packed(round_up(queries, ops.panel) * packed_row);
  Buffer keys(plan.slices * queries * kept * index_t(sizeof(Key)));
  Buffer found(plan.slices * queries * index_t(sizeof(index_t)));
  Buffer bounds(queries * index_t(sizeof(Value)));
  std::fill_n(bounds.as<Value>(), queries, Value(0));
  ops.pack(op.query, 0, queries, packed.get());

  TaskCounter slicing(plan.tasks()), merging(queries);
  const index_t scratch_bytes = hardest.scratch(op, plan.query_block, plan.tiling, capacity);
  run_workers(plan.tasks(), [&] {
    Buffer scratch(scratch_bytes);
    for (index_t task; slicing.take(task);) {
      const index_t n = task / plan.query_blocks;
      HardestCall<T> call;
      call.op = &op;
      call.query_begin = task % plan.query_blocks * plan.query_block;
      call.queries = std::min(plan.query_block, queries - call.query_begin);
      call.packed_query = packed.get() + call.query_begin * packed_row;
      call.bank_begin = plan.slice(n, rows).first;
      call.bank_end = plan.slice(n, rows).second;
      call.tiling = plan.tiling;
      call.k = kept;
      call.capacity = capacity;
      const index_t at = n * queries + call.query_begin;
      call.keys = keys.as<Key>() + at * kept;
      call.found = found.as<index_t>() + at;
      call.bounds = bounds.as<Value>() + call.query_begin;
      call.scratch = scratch.get();
      hardest.slice(call);
    }
  });

  run_workers(plan.tasks() > 1 ? queries : 1, [&] {
    std::vector<Key> all;
    for (index_t i; merging.take(i);) {
      all.clear();
      for (index_t s = 0; s < plan.slices; ++s) {
        const index_t at = s * queries + i;
        const Key* some = keys.as<Key>() + at * kept;
        all.insert(all.end(), some, some + found.as<index_t>()[at]);
      }
      const index_t have = take_largest(all, k);
      for (index_t n = 0; n < k; ++n) {
        const bool real = n < have;
        const Key key = real ? all[std::size_t(n)] : Key(0);
        values[i * k + n] = real ? Ordered<T>::value(Ordered<T>::head(key))
                                 : -std::numeric_limits<T>::infinity();
        indices[i * k + n] = real ? Ordered<T>::row(key) : -1;
      }
    }
  });
}

}  // namespace

void hardest(const BankLse& op, index_t k, void* values, index_t* indices) {
  const Kernels& isa = kernels();
  if (op.bank.rows > index_t(0xffffffff))
    throw std::length_error("hardest: a bank holds at most 2^32 - 1 rows.");
  if (op.query.dtype == DType::f64)
    return run(op, k, static_cast<double*>(values), indices, *isa.bank_f64, *isa.hardest_f64);
  const bool pairs = takes_pairs(op);
  run(op, k, static_cast<float*>(values), indices, pairs ? *isa.bank_bf16 : *isa.bank_f32,
      pairs ? *isa.hardest_bf16 : *isa.hardest_f32);
}

}  // namespace sede
