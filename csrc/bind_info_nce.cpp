// The weighted InfoNCE: tensors in, as the NamedTuples of sede_kernels/types.py.
#include "bind_info_nce.h"

#include <pybind11/stl.h>

#include <vector>

#include "bind_tensors.h"
#include "info_nce.h"

namespace {

using sede::index_t;
using namespace sede_bind;

constexpr int kF32 = int(sede::DType::f32), kF64 = int(sede::DType::f64);
constexpr index_t kPanel = 64;  // of queries, in the room for similarities

// (weighted, normalize_weights, detach_weights, positive_focus, tau_plus, false_negatives,
//  reduction, moments, hardest, margin, in_batch)
using RuleTuple = std::tuple<bool, bool, bool, double, double, int, int, bool, bool, bool, bool>;

// A number, or the one element of a tensor where there is one.
double value(const char* name, py::handle number, py::handle at) {
  if (at.is_none()) return number.cast<double>();
  Dense seen;
  const bool ok = look_at(at, seen) && seen.elements() == 1;
  require(ok && (seen.code == kF32 || seen.code == kF64), name,
          "a scalar must be one float32 or float64 on the CPU");
  if (seen.code == kF64) return *reinterpret_cast<const double*>(seen.data);
  return double(*reinterpret_cast<const float*>(seen.data));
}

bool flag(const char* name, py::handle at) {
  Dense seen;
  require(look_at(at, seen) && seen.elements() == 1 && seen.code == kBool, name,
          "in_batch_negatives must be one bool on the CPU");
  return *reinterpret_cast<const bool*>(seen.data);
}

// scalars: (temperature, hardness, margin, temperature_at, hardness_at, margin_at, batch_at).
sede::InfoNceRule rule_of(const char* name, const RuleTuple& rule, const py::tuple& scalars,
                          std::size_t sides) {
  sede::InfoNceRule out{};
  int false_negatives, reduction;
  std::tie(out.weighted, out.normalize_weights, out.detach_weights, out.positive_focus,
           out.tau_plus, false_negatives, reduction, out.moments, out.hardest, out.has_margin,
           out.in_batch) = rule;
  require(false_negatives >= 0 && false_negatives <= 2, name,
          "the code of false_negatives is unknown");
  require(reduction >= 0 && reduction <= 2, name, "the code of reduction is unknown");
  require(scalars.size() == 7, name, "there must be seven scalars");
  out.false_negatives = sede::FalseNegatives(false_negatives);
  out.reduction = sede::Reduction(reduction);
  const auto at = [&](int n) { return py::handle(PyTuple_GET_ITEM(scalars.ptr(), n)); };
  out.temperature = value(name, at(0), at(3));
  out.hardness = value(name, at(1), at(4));
  if (out.has_margin) out.margin = value(name, at(2), at(5));
  if (out.in_batch && !at(6).is_none()) out.in_batch = flag(name, at(6));
  out.share = 1.0 / double(sides);
  return out;
}

// (query, positive, rows, row_scale, bank_ids, ids, limit), or false where something has to be converted.
// Rows that are None are no rows.
bool side_of(const py::handle& side, sede::InfoNceSide& out) {
  if (!PyTuple_Check(side.ptr()) || PyTuple_GET_SIZE(side.ptr()) != 7) return false;
  const auto at = [&](int n) { return py::handle(PyTuple_GET_ITEM(side.ptr(), n)); };
  if (!is_matrix(at(0), out.query)) return false;
  if (at(1).is(at(0)))
    out.positive = out.query;
  else if (!is_matrix(at(1), out.positive))
    return false;
  if (at(2).is_none())
    out.bank = {nullptr, 0, out.query.cols, out.query.cols, 1, out.query.dtype};
  else if (at(2).is(at(0)))
    out.bank = out.query;
  else if (!is_matrix(at(2), out.bank))
    return false;
  const index_t rows = out.query.rows, columns = out.query.cols, size = out.bank.rows;
  const bool wide = out.query.dtype == sede::DType::f64;
  return out.positive.rows == rows && out.positive.cols == columns && out.bank.cols == columns &&
         out.query.dtype != sede::DType::i8 && out.positive.dtype != sede::DType::i8 &&
         is_vector(at(3), kF32, size, out.row_scale) &&
         (out.bank.dtype == sede::DType::i8) == (out.row_scale != nullptr || !at(3).is_none()) &&
         is_vector(at(4), kInt64, size, out.bank_ids) && is_vector(at(5), kInt64, rows, out.ids) &&
         is_vector(at(6), wide ? kF64 : kF32, rows, out.limit);
}

bool sides_of(const char* name, const py::tuple& side, const py::object& other,
              std::vector<sede::InfoNceSide>& out) {
  out.resize(other.is_none() ? 1 : 2);
  if (!side_of(side, out[0])) return false;
  if (out.size() == 1) return true;
  if (!side_of(other, out[1])) return false;
  require(out[1].query.rows == out[0].query.rows && out[1].query.cols == out[0].query.cols &&
              out[1].query.dtype == out[0].query.dtype,
          name, "the queries of both sides differ in shape or dtype");
  return true;
}

template <class T>
T* part(T* all, index_t step, std::size_t n) {
  return all == nullptr ? nullptr : all + step * index_t(n);
}

void* part(void* all, index_t bytes, std::size_t n) {
  return part(static_cast<char*>(all), bytes, n);
}

// Table, query gradient and similarities of each side, where they lie in the tensors of all.
void place(const char* name, std::vector<sede::InfoNceSide>& sides, py::handle table,
           py::handle query_grad, py::handle kept) {
  const index_t rows = sides[0].query.rows, columns = sides[0].query.cols;
  const index_t count = index_t(sides.size());
  const bool wide = sides[0].query.dtype == sede::DType::f64;
  const int code = wide ? kF64 : kF32;
  const index_t bytes = wide ? 8 : 4;
  const index_t room = (rows + kPanel - 1) / kPanel * kPanel * rows;
  void* tables = results(name, "table", table, code, count * sede::kTable * rows);
  void* units = wanted(name, "query_grad", query_grad, code, count * rows * columns);
  void* scores = wanted(name, "kept", kept, code, count * room);
  for (std::size_t n = 0; n < sides.size(); ++n) {
    sides[n].table = part(tables, bytes * sede::kTable * rows, n);
    sides[n].query_grad = part(units, bytes * rows * columns, n);
    sides[n].scores = part(scores, bytes * room, n);
  }
}

// Whether all tensors are plain and a call would need nothing converted: Python need not look then.
bool fits(const py::tuple& side) {
  for (py::handle tensor : side)
    if (!is_plain(tensor)) return false;
  sede::InfoNceSide seen{};
  return side_of(side, seen);
}

// out: (loss, table, query_grad, negatives, hardest_index, kept). False, and nothing done, where a
// tensor has to be converted first.
bool info_nce(const RuleTuple& rule, const py::tuple& scalars, const py::tuple& side,
              const py::object& other, const py::tuple& out) {
  const char* name = "info_nce";
  std::vector<sede::InfoNceSide> of;
  if (!sides_of(name, side, other, of)) return false;
  const sede::InfoNceRule all = rule_of(name, rule, scalars, of.size());
  require(out.size() == 6, name, "there must be six results");
  const index_t rows = of[0].query.rows, count = index_t(of.size());
  const auto at = [&](int n) { return py::handle(PyTuple_GET_ITEM(out.ptr(), n)); };
  const int code = of[0].query.dtype == sede::DType::f64 ? kF64 : kF32;
  void* loss =
      results(name, "loss", at(0), code, all.reduction == sede::Reduction::none ? rows : 1);
  place(name, of, at(1), at(2), at(5));
  index_t* negatives = wanted<index_t>(name, "negatives", at(3), kInt64, count * rows);
  index_t* hardest = wanted<index_t>(name, "hardest_index", at(4), kInt64, count * rows);
  require(!all.hardest || rows == 0 || hardest != nullptr, name, "hardest_index has no memory");
  for (std::size_t n = 0; n < of.size(); ++n) {
    of[n].negatives = part(negatives, rows, n);
    of[n].hardest_index = part(hardest, rows, n);
  }
  py::gil_scoped_release release;
  sede::info_nce(all, of, loss);
  return true;
}

// saved: (table, query_grad, kept) of the forward; out: gradients of (query, positive, other query,
// other positive, temperature, hardness), or of the first two. None or one without elements is not
// wanted.
bool info_nce_backward(const RuleTuple& rule, const py::tuple& scalars, const py::tuple& side,
                       const py::object& other, const py::object& grad, const py::tuple& saved,
                       const py::tuple& out) {
  const char* name = "info_nce_backward";
  std::vector<sede::InfoNceSide> of;
  if (!sides_of(name, side, other, of)) return false;
  const sede::InfoNceRule all = rule_of(name, rule, scalars, of.size());
  const bool learned = out.size() == 6;  // scalars and another side too
  require(saved.size() == 3 && (learned || (out.size() == 2 && of.size() == 1)), name,
          "there must be 3 saved and 6 results, or 2 of one side");
  place(name, of, saved[0], saved[1], saved[2]);
  const index_t rows = of[0].query.rows, columns = of[0].query.cols;
  const int code = of[0].query.dtype == sede::DType::f64 ? kF64 : kF32;
  Dense upstream;
  if (!look_at(grad, upstream)) return false;
  const bool whole = upstream.dimensions == 0;
  require(upstream.code == code && (whole || (upstream.dimensions == 1 && upstream.size[0] == rows)),
          name, "the gradient of the loss must be one number or one per row, in its dtype");
  const auto at = [&](std::size_t n) { return py::handle(PyTuple_GET_ITEM(out.ptr(), n)); };
  std::vector<sede::InfoNceGrads> grads;
  for (std::size_t n = 0; n < of.size(); ++n) {
    void* query =
        wanted(name, "the query gradient", at(2 * n), int(of[n].query.dtype), rows * columns);
    require(query == nullptr || of[n].query_grad, name, "the forward kept no query gradient");
    grads.push_back({query, wanted(name, "the positive's gradient", at(2 * n + 1),
                                   int(of[n].positive.dtype), rows * columns)});
  }
  const auto scalar = [&](const char* what, std::size_t n) {
    return learned ? wanted(name, what, at(n), code, 1) : nullptr;
  };
  void* temperature = scalar("the temperature's gradient", 4);
  void* hardness = scalar("the hardness's gradient", 5);
  py::gil_scoped_release release;
  sede::info_nce_backward(all, of, reinterpret_cast<void*>(upstream.data),
                          whole ? 0 : upstream.stride[0], grads, temperature, hardness);
  return true;
}

}  // namespace

void bind_info_nce(py::module_& m) {
  m.def("info_nce_fits", &fits);
  m.def("info_nce", &info_nce);
  m.def("info_nce_backward", &info_nce_backward);
}
