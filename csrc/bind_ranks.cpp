// The ranks of retrieval: tensors in, looked at once.
#include "bind_ranks.h"

#include "bind_tensors.h"
#include "ranks.h"

namespace {

using sede::DType;
using sede::index_t;
using namespace sede_bind;

// False where a side has to be converted.
bool sides(const py::object& rows, const py::object& columns, sede::Matrix& left,
           sede::Matrix& right) {
  return is_matrix(rows, left) && is_matrix(columns, right) && left.cols == right.cols &&
         left.dtype != DType::i8 && right.dtype != DType::i8;
}

DType wide(const sede::Matrix& left, const sede::Matrix& right) {
  return left.dtype == DType::f64 || right.dtype == DType::f64 ? DType::f64 : DType::f32;
}

bool block_scores(const py::object& rows, const py::object& columns, const py::object& scores) {
  sede::Matrix left, right;
  if (!sides(rows, columns, left, right)) return false;
  const DType dtype = wide(left, right);
  void* out = results("block_scores", "scores", scores, int(dtype), left.rows * right.rows);
  py::gil_scoped_release release;
  sede::block_scores(left, right, dtype, out);
  return true;
}

bool count_below(const py::object& rows, const py::object& columns, const py::object& row_bar,
                 const py::object& column_bar, const py::object& row_below,
                 const py::object& column_below) {
  const char* name = "count_below";
  sede::Matrix left, right;
  if (!sides(rows, columns, left, right)) return false;
  const DType dtype = wide(left, right);
  const sede::Bars bars{results(name, "row_bar", row_bar, int(dtype), left.rows),
                        results(name, "column_bar", column_bar, int(dtype), right.rows),
                        results<index_t>(name, "row_below", row_below, kInt64, left.rows),
                        results<index_t>(name, "column_below", column_below, kInt64, right.rows)};
  py::gil_scoped_release release;
  sede::count_below(left, right, dtype, bars);
  return true;
}

}  // namespace

void bind_ranks(py::module_& m) {
  m.def("block_scores", &block_scores);
  m.def("count_below", &count_below);
}
