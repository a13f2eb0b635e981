// Driver of the backward of in-batch negatives: tasks are slices of the keys, which own their rows of
// dk; their shares of dq are added in order. The first share is dq itself where rows are whole vectors.
#include <algorithm>

#include "dispatch.h"
#include "drivers.h"
#include "parallel.h"
#include "plan.h"

namespace sede {
namespace {

template <class T>
void run(const BankLse& op, const T* lse, const T* grad, T* query_grad, T* key_grad,
         const BankOps<T>& ops, const BatchOps<T>& batch) {
  const index_t queries = op.query.rows, dim = op.bank.cols;
  if (queries == 0) return;
  const index_t columns = round_up(dim, ops.width), share = queries * columns;
  // A quarter of the usual charge for a slice: more slices, hence threads, for large batches.
  Shape shape = shape_of(op, ops);
  shape.in_place = false;
  const Plan plan = make_plan(shape, share * index_t(sizeof(T)) / 4);
  // Similarities that the forward kept need no packed queries.
  Buffer packed(op.scores ? 0 : round_up(queries, ops.panel) * dim * ops.query_bytes);
  const index_t direct = columns == dim;  // the first slice writes dq
  Buffer shares((plan.slices - direct) * share * index_t(sizeof(T)));
  auto share_of = [&](index_t n) {
    return direct && n == 0 ? query_grad : shares.as<T>() + (n - direct) * share;
  };
  if (!op.scores) ops.pack(op.query, 0, queries, packed.get());

  TaskCounter slicing(plan.slices), adding(queries);
  const index_t scratch_bytes = batch.scratch(op, queries, plan.tiling);
  run_workers(plan.slices, [&] {
    Buffer scratch(scratch_bytes);
    for (index_t n; slicing.take(n);) {
      BatchCall<T> call;
      call.op = &op;
      call.packed_query = packed.get();
      call.bank_begin = plan.slice(n, op.bank.rows).first;
      call.bank_end = plan.slice(n, op.bank.rows).second;
      call.tiling = plan.tiling;
      call.lse = lse;
      call.grad = grad;
      call.query_grad = share_of(n);
      call.grad_stride = columns;
      call.key_grad = key_grad;
      call.scratch = scratch.get();
      batch.slice(call);
    }
  });
  if (direct && plan.slices == 1) return;
  run_workers(plan.slices > 1 ? queries : 1, [&] {
    for (index_t i; adding.take(i);)
      for (index_t s = direct; s < plan.slices; ++s) {
        const T* part = share_of(s) + i * columns;
        T* row = query_grad + i * dim;
        for (index_t d = 0; d < dim; ++d) row[d] = s ? row[d] + part[d] : part[d];
      }
  });
}

}  // namespace

void batch_lse_backward(const BankLse& op, const void* lse, const void* grad, void* query_grad,
                        void* key_grad) {
  const Kernels& isa = kernels();
  if (op.query.dtype == DType::f64)
    return run(op, static_cast<const double*>(lse), static_cast<const double*>(grad),
               static_cast<double*>(query_grad), static_cast<double*>(key_grad), *isa.bank_f64,
               *isa.batch_f64);
  run(op, static_cast<const float*>(lse), static_cast<const float*>(grad),
      static_cast<float*>(query_grad), static_cast<float*>(key_grad), *isa.bank_f32,
      *isa.batch_f32);
}

}  // namespace sede
