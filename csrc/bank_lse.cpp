// Driver of the core op: tasks are (block of queries) x (slice of the bank); the partial sums of the
// slices are combined in their order.
#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "dispatch.h"
#include "drivers.h"
#include "parallel.h"
#include "plan.h"

namespace sede {
namespace {

// Partial results of every slice.
template <class T>
struct Partials {
  index_t padded, columns, slices, exponents, accumulators, queries;
  bool direct;   // slice 0 accumulates in the caller's tensor
  bool rounded;  // the product takes rounded weights, whose sum the kernel gives apart
  T* out;
  Buffer states, accs;
  using Int = typename SliceState<T>::Int;

  Partials(const BankLse& op, const Plan& plan, const BankOps<T>& ops, T* out_acc)
      : padded(plan.query_blocks * plan.query_block),
        columns(round_up(op.bank.cols, ops.width)),
        slices(plan.slices),
        exponents(op.exponents),
        accumulators(op.accumulators),
        queries(op.query.rows),
        direct(columns == op.bank.cols),
        rounded(ops.group > 1),
        out(out_acc),
        states(slices * state_size() * index_t(sizeof(T))),
        accs((slices - direct) * accumulators * queries * columns * index_t(sizeof(T))) {}

  // Arrays of a slice, in units of T: reference, top, two of integers, E sums, E moments, A masses.
  index_t arrays() const { return 4 + 2 * exponents + accumulators; }
  index_t state_size() const { return padded * arrays(); }

  // State of the queries from `query` on; `block` is the padded length its loops run over.
  SliceState<T> state(index_t slice, index_t query) const {
    T* base = states.as<T>() + slice * state_size() + query * arrays();
    const index_t block = std::min(padded - query, block_size);
    SliceState<T> s;
    s.padded = block;
    s.reference = base;
    s.top = base + block;
    s.top_index = reinterpret_cast<Int*>(base + 2 * block);
    s.count = reinterpret_cast<Int*>(base + 3 * block);
    s.sum = base + 4 * block;
    s.moment = s.sum + exponents * block;
    s.mass = s.moment + exponents * block;
    return s;
  }

  T* acc(index_t slice, int a, index_t query) const {
    const index_t offset = (a * queries + query) * columns;
    if (direct && slice == 0) return out + offset;
    return accs.as<T>() + (slice - direct) * accumulators * queries * columns + offset;
  }

  index_t block_size = 0;
};

// Everything of query i from its slices, in double.
template <class T>
void combine(const BankLse& op, const Plan& plan, const Partials<T>& parts, const BankLseOut& out,
             index_t i) {
  const index_t queries = op.query.rows, dim = op.bank.cols;
  const index_t begin = i / plan.query_block * plan.query_block, lane = i - begin;
  double reference = -std::numeric_limits<double>::infinity();
  index_t count = 0;
  T top = -std::numeric_limits<T>::infinity();
  index_t top_index = -1;
  for (index_t s = 0; s < plan.slices; ++s) {
    const auto state = parts.state(s, begin);
    reference = std::max(reference, double(state.reference[lane]));
    count += state.count[lane];
    if (!op.hardest) continue;
    const T value = state.top[lane];
    if (value > top && state.top_index[lane] >= 0)
      top_index = state.top_index[lane] + plan.slice(s, op.bank.rows).first;
    if (value > top || value != value) top = value;
  }
  if (!std::isfinite(reference)) reference = reference > 0 ? reference : 0;
  out.count[i] = count;
  if (op.hardest) {
    static_cast<T*>(out.top)[i] = top;
    out.top_index[i] = top_index;
  }
  for (int e = 0; e < op.exponents; ++e) {
    const double scale = static_cast<const T*>(op.scales)[e];
    auto weight = [&](index_t s) {
      const double from = parts.state(s, begin).reference[lane];
      return std::isfinite(from) ? std::exp(scale * (from - reference)) : 1.0;
    };
    double sum = 0, moment = 0;
    for (index_t s = 0; s < plan.slices; ++s) {
      const auto state = parts.state(s, begin);
      const double w = weight(s);
      sum += w * double(state.sum[e * state.padded + lane]);
      if (op.moments) moment += w * double(state.moment[e * state.padded + lane]);
    }
    static_cast<T*>(out.lse)[e * queries + i] = T(scale * reference + std::log(sum));
    if (op.moments)
      static_cast<T*>(out.moment)[e * queries + i] = count ? T(moment / sum) : T(0);
    for (int a = 0; a < op.accumulators; ++a) {
      if (op.accumulate[a] != e) continue;
      double mass = sum;
      if (parts.rounded) {
        mass = 0;
        for (index_t s = 0; s < plan.slices; ++s) {
          const auto state = parts.state(s, begin);
          mass += weight(s) * double(state.mass[a * state.padded + lane]);
        }
      }
      T* row = static_cast<T*>(out.acc) + (a * queries + i) * dim;
      for (index_t s = 0; s < plan.slices; ++s) {
        const T* part = parts.acc(s, a, i);
        const T w = count ? T(weight(s) / mass) : T(0);
        for (index_t d = 0; d < dim; ++d) row[d] = s ? row[d] + w * part[d] : w * part[d];
      }
    }
  }
}

template <class T>
void run(const BankLse& op, const BankLseOut& out, const BankOps<T>& ops) {
  const index_t queries = op.query.rows, dim = op.bank.cols;
  if (queries == 0) return;
  const index_t columns = round_up(dim, ops.width);
  const Plan plan = make_plan(shape_of(op, ops), op.accumulators * queries * columns * index_t(sizeof(T)));
  Partials<T> parts(op, plan, ops, static_cast<T*>(out.acc));
  parts.block_size = plan.query_block;
  const index_t packed_row = (dim + ops.group - 1) / ops.group * ops.query_bytes;
  Buffer packed(round_up(queries, ops.panel) * packed_row);

  const index_t panels = (queries + ops.panel - 1) / ops.panel;
  auto pack = [&](index_t p) {
    const index_t first = p * ops.panel;
    ops.pack(op.query, first, std::min(ops.panel, queries - first),
             packed.get() + first * packed_row);
  };
  auto slice = [&](index_t task, char* scratch) {
    const index_t block = task % plan.query_blocks, n = task / plan.query_blocks;
    SliceCall<T> call;
    call.op = &op;
    call.query_begin = block * plan.query_block;
    call.queries = std::min(plan.query_block, queries - call.query_begin);
    call.packed_query = packed.get() + call.query_begin * packed_row;
    std::tie(call.bank_begin, call.bank_end) = plan.slice(n, op.bank.rows);
    call.tiling = plan.tiling;
    call.state = parts.state(n, call.query_begin);
    for (int a = 0; a < 2; ++a)
      call.acc[a] = a < op.accumulators ? parts.acc(n, a, call.query_begin) : nullptr;
    call.acc_stride = columns;
    call.scratch = scratch;
    ops.slice(call);
  };
  const index_t scratch_bytes = ops.scratch(op, plan.query_block, plan.tiling);

  // Small work is not worth waking threads; one task means one worker.
  TaskCounter packing(panels), slicing(plan.tasks()), combining(panels);
  const index_t workers = plan.tasks();
  run_workers(workers > 1 ? panels : 1, [&] {
    for (index_t p; packing.take(p);) pack(p);
  });
  run_workers(workers, [&] {
    Buffer scratch(scratch_bytes);
    for (index_t task; slicing.take(task);) slice(task, scratch.get());
  });
  run_workers(workers > 1 ? panels : 1, [&] {
    for (index_t p; combining.take(p);)
      for (index_t i = p * ops.panel; i < std::min(queries, (p + 1) * ops.panel); ++i)
        combine<T>(op, plan, parts, out, i);
  });
}

}  // namespace

bool takes_pairs(const BankLse& op) {
  return kernels().bank_bf16->slice && op.query.dtype == DType::bf16 &&
         (op.bank.dtype == DType::bf16 || op.bank.dtype == DType::i8);
}

void bank_lse(const BankLse& op, const BankLseOut& out) {
  const Kernels& isa = kernels();
  if (op.query.dtype == DType::f64) return run<double>(op, out, *isa.bank_f64);
  run<float>(op, out, takes_pairs(op) ? *isa.bank_bf16 : *isa.bank_f32);
}

}  // namespace sede
