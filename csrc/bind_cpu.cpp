// The Python module sede_kernels._cpu: addresses, sizes and strides in, nothing of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "bind_fragments.h"
#include "dispatch.h"
#include "drivers.h"
#include "parallel.h"

namespace py = pybind11;

namespace {

using sede::index_t;
using Address = std::uintptr_t;

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// (address, rows, columns, row stride, column stride, dtype code), strides in elements.
using MatrixTuple = std::tuple<Address, index_t, index_t, index_t, index_t, int>;

sede::Matrix matrix(const MatrixTuple& m) {
  return {pointer(std::get<0>(m)), std::get<1>(m), std::get<2>(m),
          std::get<3>(m),          std::get<4>(m), sede::DType(std::get<5>(m))};
}

void bank_lse(const MatrixTuple& query, const MatrixTuple& bank, Address row_scale, Address scales,
              int exponents, Address query_ids, Address bank_ids, Address limit, int select,
              const std::vector<int>& accumulate, Address lse, Address moment, Address acc,
              Address count, Address top, Address top_index) {
  sede::BankLse op{};
  op.query = matrix(query);
  op.bank = matrix(bank);
  op.row_scale = pointer<const float>(row_scale);
  op.scales = pointer(scales);
  op.exponents = exponents;
  op.query_ids = pointer<const index_t>(query_ids);
  op.bank_ids = pointer<const index_t>(bank_ids);
  op.limit = pointer(limit);
  op.select = sede::Select(select);
  op.empty_slots = true;
  op.moments = moment != 0;
  op.hardest = top != 0;
  op.accumulators = int(accumulate.size());
  std::copy(accumulate.begin(), accumulate.end(), op.accumulate);
  const sede::BankLseOut out{pointer(lse),          pointer(moment), pointer(acc),
                             pointer<index_t>(count), pointer(top),    pointer<index_t>(top_index)};
  py::gil_scoped_release release;
  sede::bank_lse(op, out);
}

// In-batch negatives: the keys are the bank, the query ids its ids, and the diagonal is left out.
sede::BankLse batch(const MatrixTuple& query, const MatrixTuple& key, Address scales, int exponents,
                    Address query_ids, Address limit, int select, Address scores) {
  sede::BankLse op{};
  op.query = matrix(query);
  op.bank = matrix(key);
  op.scores = pointer(scores);
  op.scales = pointer(scales);
  op.exponents = exponents;
  op.query_ids = op.bank_ids = pointer<const index_t>(query_ids);
  op.limit = pointer(limit);
  op.select = sede::Select(select);
  op.skip_diagonal = true;
  return op;
}

void batch_lse(const MatrixTuple& query, const MatrixTuple& key, Address scales, int exponents,
               Address query_ids, Address limit, int select, Address scores, Address lse,
               Address moment, Address count, Address top, Address top_index) {
  sede::BankLse op = batch(query, key, scales, exponents, query_ids, limit, select, scores);
  op.moments = moment != 0;
  op.hardest = top != 0;
  const sede::BankLseOut out{pointer(lse),          pointer(moment), nullptr,
                             pointer<index_t>(count), pointer(top),    pointer<index_t>(top_index)};
  py::gil_scoped_release release;
  sede::bank_lse(op, out);
}

void batch_lse_backward(const MatrixTuple& query, const MatrixTuple& key, Address scales,
                        int exponents, Address query_ids, Address limit, int select, Address scores,
                        Address lse, Address grad, Address query_grad, Address key_grad) {
  const sede::BankLse op = batch(query, key, scales, exponents, query_ids, limit, select, scores);
  py::gil_scoped_release release;
  sede::batch_lse_backward(op, pointer(lse), pointer(grad), pointer(query_grad),
                           pointer(key_grad));
}

void hardest(const MatrixTuple& query, const MatrixTuple& bank, Address row_scale,
             Address query_ids, Address bank_ids, index_t k, Address values, Address indices) {
  sede::BankLse op{};
  op.query = matrix(query);
  op.bank = matrix(bank);
  op.row_scale = pointer<const float>(row_scale);
  op.query_ids = pointer<const index_t>(query_ids);
  op.bank_ids = pointer<const index_t>(bank_ids);
  op.select = sede::Select::mask;
  op.empty_slots = true;
  py::gil_scoped_release release;
  sede::hardest(op, k, pointer(values), pointer<index_t>(indices));
}

// The last rows.rows of `total` keys, of which the first are not among `keys`; the ring's pointer and
// its count of filled slots move on.
void enqueue(const MatrixTuple& rows, Address row_scale, Address ids, const MatrixTuple& keys,
             Address key_ids, Address ptr, Address count, index_t total, bool normalize) {
  const index_t size = std::get<1>(rows), kept = std::get<1>(keys);
  const index_t start = *pointer<index_t>(ptr);
  const sede::Enqueue op{matrix(rows),
                         pointer<float>(row_scale),
                         pointer<index_t>(ids),
                         matrix(keys),
                         pointer<const index_t>(key_ids),
                         (start + total - kept) % size,
                         normalize};
  py::gil_scoped_release release;
  sede::enqueue(op);
  *pointer<index_t>(ptr) = (start + total) % size;
  *pointer<index_t>(count) = std::min(*pointer<index_t>(count) + total, size);
}

// GFLOP/s of a loop of fused multiply-adds in registers on `threads` threads at once.
double fma_peak_gflops(int threads, double ms) {
  py::gil_scoped_release release;
  return sede::fma_peak_gflops(threads, ms);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Native CPU kernels on raw addresses; use sede_kernels.functional instead.";
  m.def("isa", [] { return std::string(sede::kernels().name); }, "Instruction set in use.");
  m.def("compiled_isas", &sede::compiled_isas, "Sets in this build, least first.");
  m.def("supported_isas", &sede::supported_isas, "Sets this processor can run, least first.");
  m.def("select_isa", &sede::select_isa, py::arg("name"), "Choose a set; '' or 'auto': the best.");
  m.def(
      "set_parallel_for",
      [](Address function) {
        sede::set_parallel_for(reinterpret_cast<sede::ParallelFor>(function));
      },
      py::arg("address"), "Address of torch_parallel_for, or 0 for the pool of this module.");
  m.def(
      "set_thread_count",
      [](Address function) {
        sede::set_thread_count(reinterpret_cast<sede::ThreadCount>(function));
      },
      py::arg("address"), "Address of torch_get_num_threads, or 0: one thread a processor.");
  m.def("set_pool_threads", &sede::set_pool_threads, py::arg("threads"),
        "Threads of the pool; 0: as many as torch_get_num_threads says.");
  m.def("fma_peak_gflops", &fma_peak_gflops, py::arg("threads"), py::arg("ms"));
  m.def("bank_lse", &bank_lse);
  m.def("batch_lse", &batch_lse);
  m.def("batch_lse_backward", &batch_lse_backward);
  m.def("hardest", &hardest);
  m.def("enqueue", &enqueue);
  bind_fragments(m);
}
