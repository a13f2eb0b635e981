// The Python module sede_kernels._cpu: addresses, sizes and strides in, nothing of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <vector>

#include "bind_checks.h"
#include "bind_enqueue.h"
#include "bind_fragments.h"
#include "bind_info_nce.h"
#include "bind_late_interaction.h"
#include "bind_ranks.h"
#include "bind_score_info_nce.h"
#include "bind_tensors.h"
#include "dispatch.h"
#include "drivers.h"
#include "parallel.h"

namespace py = pybind11;

namespace {

using sede::index_t;
using namespace sede_bind;

constexpr int kExponents = 3;  // the kernels are made for 0 to 3

// Query and bank of one width, and what every pass over a bank takes with them.
sede::BankLse pass(const char* name, const MatrixTuple& query, const MatrixTuple& bank,
                   Address row_scale, Address query_ids, Address bank_ids, int select) {
  sede::BankLse op{};
  op.query = matrix(name, "query", query);
  op.bank = matrix(name, "bank", bank);
  op.row_scale = optional<const float>(row_scale);
  op.query_ids = optional<const index_t>(query_ids);
  op.bank_ids = optional<const index_t>(bank_ids);
  op.select = select_of(name, select);
  require(op.query.cols == op.bank.cols, name, "query and bank differ in width");
  require(op.query.dtype != sede::DType::i8, name, "the query must be floating");
  require((op.bank.dtype == sede::DType::i8) == (op.row_scale != nullptr), name,
          "an int8 bank, and no other, has row scales");
  return op;
}

void set_exponents(const char* name, sede::BankLse& op, Address scales, int exponents) {
  require(exponents >= 0 && exponents <= kExponents, name, "there are too many exponents");
  op.scales = array(name, "scales", scales, exponents);
  op.exponents = exponents;
}

sede::BankLseOut outputs(const char* name, const sede::BankLse& op, Address lse, Address moment,
                         Address acc, Address count, Address top, Address top_index) {
  const index_t rows = op.query.rows;
  return {array(name, "lse", lse, rows * op.exponents),
          optional(moment),
          array(name, "acc", acc, rows * op.query.cols * op.accumulators),
          array<index_t>(name, "count", count, rows),
          optional(top),
          optional<index_t>(top_index)};
}

void bank_lse(const MatrixTuple& query, const MatrixTuple& bank, Address row_scale, Address scales,
              int exponents, Address query_ids, Address bank_ids, Address limit, int select,
              const std::vector<int>& accumulate, Address lse, Address moment, Address acc,
              Address count, Address top, Address top_index) {
  const char* name = "bank_lse";
  sede::BankLse op = pass(name, query, bank, row_scale, query_ids, bank_ids, select);
  set_exponents(name, op, scales, exponents);
  op.limit = optional(limit);
  op.empty_slots = true;
  op.moments = moment != 0;
  op.hardest = top != 0;
  require(accumulate.size() <= std::size(op.accumulate), name, "there are too many accumulators");
  for (int index : accumulate)
    require(index >= 0 && index < exponents, name, "an accumulator names no exponent");
  op.accumulators = int(accumulate.size());
  std::copy(accumulate.begin(), accumulate.end(), op.accumulate);
  require(!op.hardest || top_index != 0, name, "top has no top_index");
  const sede::BankLseOut out = outputs(name, op, lse, moment, acc, count, top, top_index);
  py::gil_scoped_release release;
  sede::bank_lse(op, out);
}

// In-batch negatives: the keys are the bank, the query ids its ids, and the diagonal is left out.
sede::BankLse batch(const char* name, const MatrixTuple& query, const MatrixTuple& key,
                    Address scales, int exponents, Address query_ids, Address limit, int select,
                    Address scores) {
  sede::BankLse op = pass(name, query, key, 0, query_ids, query_ids, select);
  set_exponents(name, op, scales, exponents);
  require(op.query.rows == op.bank.rows, name, "query and key differ in length");
  op.scores = optional(scores);
  op.limit = optional(limit);
  op.skip_diagonal = true;
  return op;
}

void batch_lse(const MatrixTuple& query, const MatrixTuple& key, Address scales, int exponents,
               Address query_ids, Address limit, int select, Address scores, Address lse,
               Address moment, Address count, Address top, Address top_index) {
  const char* name = "batch_lse";
  sede::BankLse op = batch(name, query, key, scales, exponents, query_ids, limit, select, scores);
  op.moments = moment != 0;
  op.hardest = top != 0;
  require(!op.hardest || top_index != 0, name, "top has no top_index");
  const sede::BankLseOut out = outputs(name, op, lse, moment, 0, count, top, top_index);
  py::gil_scoped_release release;
  sede::bank_lse(op, out);
}

void batch_lse_backward(const MatrixTuple& query, const MatrixTuple& key, Address scales,
                        int exponents, Address query_ids, Address limit, int select, Address scores,
                        Address lse, Address grad, Address query_grad, Address key_grad) {
  const char* name = "batch_lse_backward";
  const sede::BankLse op =
      batch(name, query, key, scales, exponents, query_ids, limit, select, scores);
  const index_t sums = op.query.rows * exponents, elements = op.query.rows * op.query.cols;
  const void* lse_in = array(name, "lse", lse, sums);
  const void* grad_in = array(name, "grad", grad, sums);
  void* query_out = array(name, "query_grad", query_grad, elements);
  void* key_out = array(name, "key_grad", key_grad, elements);
  py::gil_scoped_release release;
  sede::batch_lse_backward(op, lse_in, grad_in, query_out, key_out);
}

// Tensors in: bank is (rows, row_scale, ids). False, and nothing done, where one has to be converted, or
// with `plain` where one is of another class or waits for its sign.
bool hardest(const py::object& query, const py::tuple& bank, const py::object& query_ids, index_t k,
             const py::object& values, const py::object& indices, bool plain) {
  const char* name = "hardest";
  sede::BankLse op{};
  require(bank.size() == 3, name, "the bank must be rows, scales and ids");
  const py::handle rows = PyTuple_GET_ITEM(bank.ptr(), 0), scale = PyTuple_GET_ITEM(bank.ptr(), 1),
                   of_rows = PyTuple_GET_ITEM(bank.ptr(), 2);
  const index_t *ids = nullptr, *bank_ids = nullptr;
  if (plain && !(is_plain(query) && is_plain(rows) && is_plain(scale) && is_plain(of_rows) &&
                 is_plain(query_ids)))
    return false;
  if (!is_matrix(query, op.query) || !is_matrix(rows, op.bank) || op.query.cols != op.bank.cols ||
      op.query.dtype == sede::DType::i8 ||
      (op.bank.dtype == sede::DType::i8) == scale.is_none() ||
      !is_vector(scale, int(sede::DType::f32), op.bank.rows, op.row_scale) ||
      !is_vector(of_rows, kInt64, op.bank.rows, bank_ids) ||
      !is_vector(query_ids, kInt64, op.query.rows, ids))
    return false;
  op.query_ids = ids, op.bank_ids = bank_ids;
  op.select = sede::Select::mask;
  op.empty_slots = true;
  require(k >= 0, name, "k is negative");
  const sede::DType found = op.query.dtype == sede::DType::f64 ? sede::DType::f64 : sede::DType::f32;
  if (op.query.rows * k == 0) return true;
  void* values_out = results(name, "values", values, int(found), op.query.rows * k);
  index_t* indices_out = results<index_t>(name, "indices", indices, kInt64, op.query.rows * k);
  py::gil_scoped_release release;
  sede::hardest(op, k, values_out, indices_out);
  return true;
}

// GFLOP/s of a loop of fused multiply-adds in registers on `threads` threads at once.
double fma_peak_gflops(int threads, double ms) {
  py::gil_scoped_release release;
  return sede::fma_peak_gflops(threads, ms);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Native CPU kernels on raw addresses; use sede_kernels.functional instead.";
  m.attr("interface") = SEDE_INTERFACE;
  m.attr("version") = SEDE_VERSION;
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
  m.def("set_dtypes", &set_dtypes, "The dtypes of torch in the order of their codes.");
  m.def("set_exchange", &exchange::set, "torch's exchange of DLPack, or None: attributes are read.");
  m.def("set_classes", &set_classes, "The classes of tensors that are plain ones.");
  m.def("bank_lse", &bank_lse);
  m.def("batch_lse", &batch_lse);
  m.def("batch_lse_backward", &batch_lse_backward);
  m.def("hardest", &hardest, py::arg("query"), py::arg("bank"), py::arg("query_ids"), py::arg("k"),
        py::arg("values"), py::arg("indices"), py::arg("plain") = false);
  bind_enqueue(m);
  bind_fragments(m);
  bind_info_nce(m);
  bind_late_interaction(m);
  bind_ranks(m);
  bind_score_info_nce(m);
}
