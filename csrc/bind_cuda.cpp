// The Python module sede_kernels._cuda: addresses, sizes, strides and a stream in; nothing of
// torch, and nothing of CUDA until a kernel is asked for.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "bind_cuda.h"
#include "cuda/launch/driver.h"
#include "cuda/launch/exact.h"
#include "cuda/launch/hopper.h"
#include "cuda/launch/images.h"
#include "cuda/launch/rows.h"

namespace py = pybind11;

namespace {

using namespace sede_cuda;

// (query, bank, row scale, match, (lse, moment, acc, count, top, top index))
using SideTuple =
    std::tuple<MatrixTuple, MatrixTuple, Address, MatchTuple, std::array<Address, 6>>;

// (ids, pointer, count, rejected, ids of the keys, tickets)
using RingTuple = std::tuple<Address, Address, Address, Address, Address, Address>;
// (address, sets, fragments, columns, their strides, dtype code)
using SetsTuple = std::tuple<Address, index_t, index_t, index_t, index_t, index_t, index_t, int>;

index_t call_bank_lse(Address stream, const std::vector<SideTuple>& sides, Address scales,
                      const std::vector<int>& order, int accumulators, bool moments, bool hardest,
                      bool unit_length, bool tf32, Address scratch) {
  const char* name = "bank_lse";
  require(sides.size() == 1 || sides.size() == 2, name, "there must be one or two banks");
  require(order.size() <= kExponents, name, "there are too many exponents");
  require(accumulators >= 0 && accumulators <= std::min(int(order.size()), kAccumulators), name,
          "there are too many accumulators");
  Want want{pointer<const float>(scales), {0, 0, 0}, int(order.size()), accumulators, moments,
            hardest, {}, 0, unit_length};
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
  return sede_cuda::bank_lse(banks, want, tf32, pointer<void>(scratch), pointer<void>(stream));
}

index_t call_batch_lse_backward(Address stream, const MatrixTuple& query, const MatrixTuple& key,
                                const MatchTuple& matched, Address scales, int exponents,
                                Address lse, Address grad, Address query_grad, Address key_grad,
                                Address memory) {
  const char* name = "batch_lse_backward";
  require(exponents >= 1 && exponents <= kExponents, name, "there are too many exponents");
  const Want want{pointer<const float>(scales), {0, 1, 2}, exponents, 0, 0, 0, {}, 0, 0};
  BatchGradient op{};
  op.sides = 1;
  op.query_grad[0] = pointer<float>(query_grad);
  op.key_grad[0] = pointer<float>(key_grad);
  op.of.want[0] = want;
  op.of.terms = 1;
  GradientSide& side = op.of.side[0];
  side.query = matrix(name, query);
  side.key = matrix(name, key);
  side.term[0] = {pointer<const float>(lse), pointer<const float>(grad), match(name, matched)};
  op.of.rows = side.query.rows;
  fits(name, side.query, side.key, 0);
  require(side.query.rows == side.key.rows, name, "query and key differ in length");
  Scratch scratch(pointer<void>(memory));
  sede_cuda::batch_lse_backward(op, scratch, pointer<void>(stream));
  return scratch.most();
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

Ring ring_of(const char* name, index_t size, const RingTuple& ring, index_t total) {
  const auto [ids, ptr, count, rejected, key_ids, tickets] = ring;
  require(ids != 0 && ptr != 0 && count != 0 && rejected != 0 && tickets != 0, name,
          "the ring has no counters");
  return {size, pointer<index_t>(ids), pointer<index_t>(ptr), pointer<index_t>(count),
          pointer<index_t>(rejected), pointer<const index_t>(key_ids),
          std::max<index_t>(0, total - size), total, pointer<int>(tickets)};
}

void call_enqueue(Address stream, const MatrixTuple& rows, Address row_scale,
                  const RingTuple& ring, const MatrixTuple& keys, bool normalize) {
  const char* name = "enqueue";
  const Matrix to = matrix(name, rows), from = matrix(name, keys);
  fits(name, from, to, row_scale);
  const Enqueue op{ring_of(name, to.rows, ring, from.rows), const_cast<void*>(to.data), to.cols,
                   to.row_stride, to.col_stride, to.dtype, pointer<float>(row_scale), from,
                   normalize};
  sede_cuda::enqueue(op, pointer<void>(stream));
}

void call_enqueue_fragments(Address stream, const SetsTuple& rows, Address lengths,
                            const RingTuple& ring, const SetsTuple& keys, Address key_lengths) {
  const char* name = "enqueue_fragments";
  const auto [to, size, longest, dim, slot_stride, row_stride, col_stride, to_dtype] = rows;
  const auto [from, total, width, columns, set_stride, from_row, from_col, from_dtype] = keys;
  for (const int dtype : {to_dtype, from_dtype})
    require(dtype == f32 || dtype == bf16 || dtype == f16, name, "the dtype has no kernel");
  require(size > 0 && columns == dim && width <= longest && lengths != 0, name,
          "sets and ring do not fit");
  const EnqueueSets op{ring_of(name, size, ring, total), pointer<void>(to), longest, dim,
                       slot_stride, row_stride, col_stride, to_dtype, pointer<index_t>(lengths),
                       {pointer<const void>(from), width, dim, from_row, from_col, from_dtype},
                       set_stride, width, pointer<const index_t>(key_lengths)};
  sede_cuda::enqueue(op, pointer<void>(stream));
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
  m.def("set_exact", &set_exact, "Whether the fused pass in fp32 may be used.");
  m.def("set_hopper", &set_hopper, "Whether the instructions of capability 9.0 may be used.");
  m.def("enqueue", &call_enqueue);
  m.def("enqueue_fragments", &call_enqueue_fragments);
  m.def("erase", &call_erase);
  m.def("erase_backward", &call_erase_backward);
  // Each returns the bytes of scratch memory it needs, and runs when `scratch` is not 0.
  m.def("bank_lse", &call_bank_lse);
  m.def("batch_lse_backward", &call_batch_lse_backward);
  m.def("hardest", &call_hardest);
  bind_info_nce(m);
  bind_score_info_nce(m);
}
