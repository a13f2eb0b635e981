// The Python module sede_kernels._cuda: addresses, sizes, strides and a stream in; nothing of torch,
// and nothing of CUDA until a kernel is asked for.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/launch/bank.h"
#include "cuda/launch/driver.h"
#include "cuda/launch/images.h"
#include "cuda/launch/rows.h"

namespace py = pybind11;

namespace {

using namespace sede_cuda;
using Address = std::uintptr_t;

// (address, rows, columns, row stride, column stride, dtype code), strides in elements.
using MatrixTuple = std::tuple<Address, index_t, index_t, index_t, index_t, int>;
// (query ids, bank ids, limit, select, in batch)
using MatchTuple = std::tuple<Address, Address, Address, int, bool>;
// (query, bank, row scale, match, (lse, moment, acc, count, top, top index))
using SideTuple =
    std::tuple<MatrixTuple, MatrixTuple, Address, MatchTuple, std::array<Address, 6>>;

void require(bool ok, const char* op, const char* what) {
  if (!ok) throw std::invalid_argument(std::string(op) + ": " + what + ".");
}

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

Matrix matrix(const char* op, const MatrixTuple& m) {
  const auto [address, rows, cols, row_stride, col_stride, dtype] = m;
  require(rows > 0 && cols >= 0, op, "a matrix is empty");
  require(address != 0 || cols == 0, op, "a matrix has no address");
  require(dtype == f32 || dtype == bf16 || dtype == f16 || dtype == i8, op,
          "the dtype has no kernel");
  return {pointer<const void>(address), rows, cols, row_stride, col_stride, dtype};
}

Match match(const char* op, const MatchTuple& m) {
  const auto [query_ids, bank_ids, limit, select, in_batch] = m;
  require(select >= keep && select <= positive, op, "the code of select is unknown");
  return {pointer<const index_t>(query_ids), pointer<const index_t>(bank_ids),
          pointer<const float>(limit), select, in_batch};
}

void fits(const char* op, const Matrix& query, const Matrix& bank, Address row_scale) {
  require(query.cols == bank.cols, op, "query and bank differ in width");
  require(query.dtype != i8, op, "the query must be floating");
  require((bank.dtype == i8) == (row_scale != 0), op, "an int8 bank, and no other, has row scales");
}

index_t call_bank_lse(Address stream, const std::vector<SideTuple>& sides, Address scales,
                 const std::vector<int>& order, int accumulators, bool moments, bool hardest,
                 Address scratch) {
  const char* name = "bank_lse";
  require(sides.size() == 1 || sides.size() == 2, name, "there must be one or two banks");
  require(order.size() <= kExponents, name, "there are too many exponents");
  require(accumulators >= 0 && accumulators <= std::min(int(order.size()), kAccumulators), name,
          "there are too many accumulators");
  Want want{pointer<const float>(scales), {0, 0, 0}, int(order.size()), accumulators, moments,
            hardest};
  for (size_t e = 0; e < order.size(); ++e) {
    require(order[e] >= 0 && order[e] < int(order.size()), name, "an exponent is out of range");
    want.order[e] = order[e];
  }
  std::vector<BankSide> banks;
  for (const auto& [query, bank, row_scale, matched, out] : sides) {
    const BankSide side{matrix(name, query), matrix(name, bank), pointer<const float>(row_scale),
                        match(name, matched),
                        {pointer<float>(out[0]), pointer<float>(out[1]), pointer<float>(out[2]),
                         pointer<index_t>(out[3]), pointer<float>(out[4]),
                         pointer<index_t>(out[5])}};
    fits(name, side.query, side.bank, row_scale);
    require(!moments || out[1] != 0, name, "there is no memory for moments");
    require(!hardest || (out[4] != 0 && out[5] != 0), name, "there is no memory for the hardest");
    banks.push_back(side);
    require(side.query.rows == banks[0].query.rows && side.bank.rows == banks[0].bank.rows &&
                side.query.cols == banks[0].query.cols && side.bank.dtype == banks[0].bank.dtype &&
                side.query.dtype == banks[0].query.dtype,
            name, "the two banks differ");
  }
  return sede_cuda::bank_lse(banks, want, pointer<void>(scratch), pointer<void>(stream));
}

index_t call_batch_lse_backward(Address stream, const MatrixTuple& query, const MatrixTuple& key,
                           const MatchTuple& matched, Address scales, int exponents, Address lse,
                           Address grad, Address query_grad, Address key_grad, Address scratch) {
  const char* name = "batch_lse_backward";
  const BatchGradient op{matrix(name, query), matrix(name, key), match(name, matched),
                         pointer<const float>(scales), pointer<const float>(lse),
                         pointer<const float>(grad), exponents, pointer<float>(query_grad),
                         pointer<float>(key_grad)};
  fits(name, op.query, op.key, 0);
  require(op.query.rows == op.key.rows, name, "query and key differ in length");
  return sede_cuda::batch_lse_backward(op, pointer<void>(scratch), pointer<void>(stream));
}

index_t call_hardest(Address stream, const MatrixTuple& query, const MatrixTuple& bank,
                Address row_scale, const MatchTuple& matched, int k, Address values,
                Address indices, Address scratch) {
  const char* name = "hardest";
  const Matrix queries = matrix(name, query), rows = matrix(name, bank);
  fits(name, queries, rows, row_scale);
  require(k >= 1 && k <= kMostTop, name, "k is out of range");
  return sede_cuda::hardest(queries, rows, pointer<const float>(row_scale), match(name, matched),
                            k, pointer<float>(values), pointer<index_t>(indices),
                            pointer<void>(scratch), pointer<void>(stream));
}

void call_enqueue(Address stream, const MatrixTuple& rows, Address row_scale, Address ids,
                  Address ptr, Address count, Address rejected, const MatrixTuple& keys,
                  Address key_ids, bool normalize) {
  const char* name = "enqueue";
  const Matrix ring = matrix(name, rows), from = matrix(name, keys);
  fits(name, from, ring, row_scale);
  require(ids != 0 && ptr != 0 && count != 0 && rejected != 0, name, "the ring has no counters");
  const Enqueue op{const_cast<void*>(ring.data), ring.rows, ring.cols, ring.row_stride,
                   ring.col_stride, ring.dtype, pointer<float>(row_scale), pointer<index_t>(ids),
                   pointer<const index_t>(ptr), pointer<index_t>(count),
                   pointer<index_t>(rejected), from, pointer<const index_t>(key_ids),
                   std::max<index_t>(0, from.rows - ring.rows), normalize};
  sede_cuda::enqueue(op, pointer<index_t>(ptr), from.rows, pointer<void>(stream));
}

int row_length(const char* op, const MatrixTuple& rows) {
  const Matrix m = matrix(op, rows);
  require(m.cols >= 1 && m.cols <= kBlockRow, op, "rows are too long or empty");
  require(m.col_stride == 1 && m.row_stride == m.cols && m.dtype != i8, op,
          "rows must be contiguous and floating");
  return int(m.cols);
}

void call_erase(Address stream, const MatrixTuple& attention, Address lengths, Address out,
                Address mask, int rule, double threshold, bool low, int keep_min,
                bool renormalize) {
  const char* name = "erase";
  const int length = row_length(name, attention);
  const Matrix rows = matrix(name, attention);
  require(rule >= mean && rule <= quantile, name, "the code of the rule is unknown");
  require(out != 0 && mask != 0, name, "a result has no address");
  const Erase op{rows.data, pointer<const index_t>(lengths), pointer<void>(out),
                 pointer<unsigned char>(mask), rows.rows, length, rows.dtype, rule, threshold,
                 low, keep_min, renormalize};
  sede_cuda::erase(op, pointer<void>(stream));
}

void call_erase_backward(Address stream, const MatrixTuple& grad_out, Address attention,
                         Address mask, Address grad, bool renormalize) {
  const char* name = "erase_backward";
  const int length = row_length(name, grad_out);
  const Matrix rows = matrix(name, grad_out);
  require(attention != 0 && mask != 0 && grad != 0, name, "a tensor has no address");
  const EraseBackward op{rows.data, pointer<const void>(attention),
                         pointer<const unsigned char>(mask), pointer<void>(grad), rows.rows,
                         length, rows.dtype, renormalize};
  sede_cuda::erase_backward(op, pointer<void>(stream));
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels on raw addresses; use sede_kernels.functional instead.";
  py::register_exception<DriverError>(m, "DriverError", PyExc_RuntimeError);
  m.attr("most_top") = int(kMostTop);
  m.def("architectures", [] { return std::string(image_architectures()); },
        "What the kernels were compiled for.");
  m.def("unavailable_reason", &unavailable_reason, "Why no kernel can run, or an empty text.");
  m.attr("longest_row") = int(kBlockRow);
  m.def("set_chunk", &set_chunk, "Similarities that go to memory at a time, least columns.");
  m.def("enqueue", &call_enqueue);
  m.def("erase", &call_erase);
  m.def("erase_backward", &call_erase_backward);
  // Each returns the bytes of scratch memory it needs, and runs when `scratch` is not 0.
  m.def("bank_lse", &call_bank_lse);
  m.def("batch_lse_backward", &call_batch_lse_backward);
  m.def("hardest", &call_hardest);
}
