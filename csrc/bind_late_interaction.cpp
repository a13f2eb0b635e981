// Bindings of late interaction: of a product that was formed by addresses, of the sides by tensors.
#include "bind_late_interaction.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>

#include "bind_tensors.h"
#include "fragments.h"

namespace {

using sede::index_t;
using namespace sede_bind;

// Fields of Nearest in their order.
using Columns = std::tuple<Address, index_t, index_t, Address, Address, Address, Address, index_t>;

void nearest(const Columns& columns) {
  sede::Nearest op{};
  Address s, begin, count, score, source;
  std::tie(s, op.sets, op.columns, begin, count, score, source, op.stride) = columns;
  op.s = optional<const float>(s);
  op.begin = optional<const index_t>(begin);
  op.count = optional<const index_t>(count);
  op.score = optional<float>(score);
  op.source = optional<std::int32_t>(source);
  py::gil_scoped_release release;
  sede::nearest(op);
}

// Fields of NearestBackward in their order, up to the gradients of the sides.
using Shares = std::tuple<index_t, index_t, index_t, index_t, Address, Address, Address, Address, Address,
                          Address>;

void nearest_backward(const Shares& shares, Address d_rows, Address d_queries) {
  sede::NearestBackward op{};
  Address begin, count, rows, queries, share, source;
  std::tie(op.groups, op.sets, op.columns, op.dim, begin, count, rows, queries, share, source) = shares;
  op.begin = optional<const index_t>(begin);
  op.count = optional<const index_t>(count);
  op.rows = optional<const float>(rows);
  op.queries = optional<const float>(queries);
  op.share = optional<const float>(share);
  op.source = optional<const std::int32_t>(source);
  op.d_rows = optional<float>(d_rows);
  op.d_queries = optional<float>(d_queries);
  py::gil_scoped_release release;
  sede::nearest_backward(op);
}

// (aggregate, its scale, whether words are the sources).
using How = std::tuple<int, float, bool>;

// Both sides: all pairs of (sets, F, D), or chosen ones of (B, N or 1, F, D).
struct Call {
  sede::LateSets op{};
  sede::LateAggregate how{};

  index_t pairs() const { return op.groups * op.source_sets * op.query_sets; }
  index_t kept() const { return pairs() * op.queries; }
};

bool lengths_of(py::handle lengths, index_t sets, index_t most, const index_t*& out) {
  if (!is_array(lengths, kInt64, sets, out)) return false;
  return out == nullptr || std::all_of(out, out + sets, [&](index_t n) { return n >= 0 && n <= most; });
}

// False where a tensor has to be converted, or does not fit.
bool read(const py::tuple& sides, const How& how, Call& call) {
  require(sides.size() == 4, "late_interaction", "the sides must be two tensors and their lengths");
  const auto [aggregate, scale, swap] = how;
  require(aggregate >= 0 && aggregate <= int(sede::Aggregate::sum), "late_interaction",
          "the code of the aggregate is unknown");
  const py::handle source = PyTuple_GET_ITEM(sides.ptr(), swap), query = PyTuple_GET_ITEM(sides.ptr(), !swap),
                   counts = PyTuple_GET_ITEM(sides.ptr(), 2 + swap),
                   lengths = PyTuple_GET_ITEM(sides.ptr(), 2 + !swap);
  Dense rows, queries;
  const auto fits = [](const Dense& seen) {
    return seen.code == int(sede::DType::f32) && seen.contiguous() && seen.elements() > 0;
  };
  if (!look_at(source, rows) || !look_at(query, queries) || !fits(rows) || !fits(queries) ||
      rows.dimensions != queries.dimensions || rows.dimensions < 3 || rows.dimensions > 4)
    return false;
  const int last = rows.dimensions - 1, sets = rows.dimensions - 3;
  sede::LateSets& op = call.op;
  op.groups = 1, op.source_sets = rows.size[sets], op.query_sets = queries.size[sets];
  op.sources = rows.size[last - 1], op.queries = queries.size[last - 1], op.dim = rows.size[last];
  if (queries.size[last] != op.dim) return false;
  if (sets == 1) {
    const bool shared = op.source_sets == 1 || op.query_sets == 1;
    if (rows.size[0] != queries.size[0] || !(shared || op.source_sets == op.query_sets)) return false;
    op.groups = rows.size[0];
    if (!shared) op.groups *= op.source_sets, op.source_sets = op.query_sets = 1;
  }
  op.source = reinterpret_cast<const float*>(rows.data);
  op.query = reinterpret_cast<const float*>(queries.data);
  call.how = {sede::Aggregate(aggregate), scale, swap};
  return lengths_of(counts, op.groups * op.source_sets, op.sources, op.source_lengths) &&
         lengths_of(lengths, op.groups * op.query_sets, op.queries, op.query_lengths);
}

// Scores and sources in one tensor, of which each is a half; null if it is empty.
template <class T>
std::pair<T*, std::int32_t*> halves(const char* name, const Call& call, const py::object& kept) {
  float* whole = wanted<float>(name, "kept", kept, int(sede::DType::f32), 2 * call.kept());
  return {whole, whole ? reinterpret_cast<std::int32_t*>(whole + call.kept()) : nullptr};
}

// Whether the sides are plain tensors, of which none has to be converted.
bool late_interaction_fits(const py::tuple& sides, const How& how) {
  Call call;
  return read(sides, how, call) &&
         std::all_of(sides.begin(), sides.end(), [](py::handle tensor) { return is_plain(tensor); });
}

// False, and nothing done, where a tensor has to be converted or does not fit.
bool late_interaction(const py::tuple& sides, const How& how, const py::object& out, const py::object& kept) {
  const char* name = "late_interaction";
  Call call;
  if (!read(sides, how, call)) return false;
  float* found = results<float>(name, "out", out, int(sede::DType::f32), call.pairs());
  const auto [score, source] = halves<float>(name, call, kept);
  py::gil_scoped_release release;
  sede::late_interaction(call.op, call.how, found, score, source);
  return true;
}

// As the forward; gradients of the first and the second side, each of no elements where it is not wanted.
bool late_interaction_backward(const py::tuple& sides, const How& how, const py::object& grad,
                               const py::object& kept, const py::object& d_first, const py::object& d_second) {
  const char* name = "late_interaction_backward";
  Call call;
  if (!read(sides, how, call)) return false;
  const int f32 = int(sede::DType::f32);
  const sede::LateSets& op = call.op;
  const bool swap = call.how.by_query;
  const float* upstream = results<float>(name, "grad", grad, f32, call.pairs());
  const auto [score, source] = halves<const float>(name, call, kept);
  require(score != nullptr, name, "the forward kept nothing");
  float* d_source = wanted<float>(name, "d_source", swap ? d_second : d_first, f32,
                                  op.groups * op.source_sets * op.sources * op.dim);
  float* d_query = wanted<float>(name, "d_query", swap ? d_first : d_second, f32,
                                 op.groups * op.query_sets * op.queries * op.dim);
  py::gil_scoped_release release;
  sede::late_interaction_backward(op, call.how, upstream, score, source, d_source, d_query);
  return true;
}

}  // namespace

void bind_late_interaction(py::module_& m) {
  m.def("nearest", &nearest);
  m.def("nearest_backward", &nearest_backward);
  m.def("late_interaction_fits", &late_interaction_fits);
  m.def("late_interaction", &late_interaction);
  m.def("late_interaction_backward", &late_interaction_backward);
}
