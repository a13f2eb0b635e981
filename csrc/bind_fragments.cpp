// Bindings of the ops on fragments: erasing by tensors, the similarities by addresses.
#include "bind_fragments.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <tuple>

#include "bind_tensors.h"
#include "fragments.h"

namespace {

using sede::index_t;
using namespace sede_bind;

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// Whether these are int64 numbers of that shape in [0, most], as kernels count by.
bool lengths_fit(const py::object& lengths, const py::tuple& shape, index_t most) {
  Dense seen;
  if (!look_at(lengths, seen) || seen.code != kInt64 || !seen.contiguous() ||
      seen.dimensions != int(shape.size()))
    return false;
  for (int d = 0; d < seen.dimensions; ++d)
    if (seen.size[d] != shape[std::size_t(d)].cast<index_t>()) return false;
  const index_t* values = reinterpret_cast<const index_t*>(seen.data);
  return std::all_of(values, values + seen.elements(),
                     [&](index_t value) { return value >= 0 && value <= most; });
}

// Rows of weights, contiguous and of single or half precision.
bool weights(const py::object& tensor, Dense& out) {
  return look_at(tensor, out) && out.dimensions > 0 && out.contiguous() &&
         out.code < int(sede::DType::i8) && out.code != int(sede::DType::f64);
}

index_t rows_of(const Dense& tensor) {
  const index_t length = tensor.size[tensor.dimensions - 1];
  return length == 0 ? 0 : tensor.elements() / length;
}

// Tensors in; false, and nothing done, where one has to be converted or a length is out of range.
bool erase(const py::object& attention, const py::object& lengths, int rule, double threshold,
           index_t keep_min, bool low, bool renormalize, const py::object& out,
           const py::object& mask) {
  const char* name = "erase";
  Dense seen, counts;
  if (!weights(attention, seen)) return false;
  const index_t length = seen.size[seen.dimensions - 1], rows = rows_of(seen);
  if (!lengths.is_none()) {
    py::tuple shape(std::size_t(seen.dimensions - 1));
    for (int d = 0; d + 1 < seen.dimensions; ++d) shape[std::size_t(d)] = py::int_(seen.size[d]);
    if (!lengths_fit(lengths, shape, length) || !look_at(lengths, counts)) return false;
  }
  require(rule >= 0 && rule <= int(sede::Rule::quantile), name, "the code of the rule is unknown");
  if (seen.elements() == 0) return true;
  const sede::EraseForward op{pointer<const void>(seen.data),
                              results(name, "out", out, seen.code, seen.elements()),
                              results<unsigned char>(name, "mask", mask, kBool, seen.elements()),
                              pointer<const index_t>(counts.data),
                              rows,
                              length,
                              sede::DType(seen.code),
                              {sede::Rule(rule), threshold, keep_min, low, renormalize}};
  py::gil_scoped_release release;
  sede::erase(op);
  return true;
}

bool erase_backward(const py::object& grad, const py::object& attention, const py::object& mask,
                    bool renormalize, const py::object& out) {
  const char* name = "erase_backward";
  Dense seen, upstream;
  unsigned char* kept = nullptr;
  if (!weights(attention, seen) || !weights(grad, upstream) || upstream.code != seen.code ||
      upstream.elements() != seen.elements() || mask.is_none() ||
      !is_array(mask, kBool, seen.elements(), kept))
    return false;
  if (seen.elements() == 0) return true;
  const sede::EraseBackward op{pointer<const void>(upstream.data),
                               pointer<const void>(seen.data),
                               kept,
                               results(name, "out", out, seen.code, seen.elements()),
                               rows_of(seen),
                               seen.size[seen.dimensions - 1],
                               sede::DType(seen.code),
                               renormalize};
  py::gil_scoped_release release;
  sede::erase_backward(op);
  return true;
}

// Fields of CrossAttention in their order: addresses and sizes, then the settings.
using Block = std::tuple<Address, index_t, index_t, index_t, Address, Address, bool, Address, index_t,
                         Address, Address, Address, Address>;
using Settings = std::tuple<float, int, float, bool, int, double, bool, index_t, bool>;

template <class Op>
void set_settings(Op& op, const Settings& settings) {
  int aggregate, rule;
  std::tie(op.smoothing, aggregate, op.aggregate_scale, op.erase, rule, op.rule.threshold,
           op.rule.low, op.rule.keep_min, op.rule.renormalize) = settings;
  op.aggregate = sede::Aggregate(aggregate);
  op.rule.rule = sede::Rule(rule);
}

sede::CrossAttention cross_attention_call(const Block& block, const Settings& settings) {
  sede::CrossAttention op{};
  Address s, starts, lane_lengths, gram, source_norm, source_mass, query_norm, lost;
  std::tie(s, op.sets, op.fragments, op.lanes, starts, lane_lengths, op.lane_source, gram,
           op.row_gram, source_norm, source_mass, query_norm, lost) = block;
  op.s = pointer<const float>(s);
  op.starts = pointer<const index_t>(starts);
  op.lane_lengths = pointer<const index_t>(lane_lengths);
  op.gram = pointer<const float>(gram);
  op.source_norm = pointer<const float>(source_norm);
  op.source_mass = pointer<const float>(source_mass);
  op.query_norm = pointer<const float>(query_norm);
  op.lost = pointer<std::int32_t>(lost);
  set_settings(op, settings);
  return op;
}

void cross_attention(const Block& block, const Settings& settings, Address out) {
  sede::CrossAttention op = cross_attention_call(block, settings);
  op.out = pointer<float>(out);
  py::gil_scoped_release release;
  sede::cross_attention(op);
}

void cross_attention_backward(const Block& block, const Settings& settings, Address grad,
                              Address ds, Address d_gram, Address d_norm, index_t blocks) {
  sede::CrossAttention op = cross_attention_call(block, settings);
  op.grad = pointer<const float>(grad);
  op.ds = pointer<float>(ds);
  op.d_gram = pointer<float>(d_gram);
  op.d_norm = pointer<float>(d_norm);
  py::gil_scoped_release release;
  sede::cross_attention_backward(op, blocks);
}

// Fields of CrossAttentionPairs in their order, up to the settings.
using Pairs = std::tuple<Address, Address, index_t, index_t, index_t, index_t, index_t, index_t, index_t,
                         Address, Address, bool>;

sede::CrossAttentionPairs pairs_call(const Pairs& pairs, const Settings& settings) {
  sede::CrossAttentionPairs op{};
  Address source, query, source_lengths, query_lengths;
  std::tie(source, query, op.batch, op.pairs, op.source_sets, op.query_sets, op.sources, op.queries,
           op.dim, source_lengths, query_lengths, op.contexts) = pairs;
  op.source = pointer<const float>(source);
  op.query = pointer<const float>(query);
  op.source_lengths = pointer<const index_t>(source_lengths);
  op.query_lengths = pointer<const index_t>(query_lengths);
  set_settings(op, settings);
  return op;
}

void cross_attention_pairs(const Pairs& pairs, const Settings& settings, Address out) {
  sede::CrossAttentionPairs op = pairs_call(pairs, settings);
  op.out = pointer<float>(out);
  py::gil_scoped_release release;
  sede::cross_attention_pairs(op);
}

void cross_attention_pairs_backward(const Pairs& pairs, const Settings& settings, Address grad,
                          Address d_source, Address d_query) {
  sede::CrossAttentionPairs op = pairs_call(pairs, settings);
  op.grad = pointer<const float>(grad);
  op.d_source = pointer<float>(d_source);
  op.d_query = pointer<float>(d_query);
  py::gil_scoped_release release;
  sede::cross_attention_pairs_backward(op);
}

}  // namespace

void bind_fragments(py::module_& m) {
  m.def("lengths_fit", &lengths_fit);
  m.def("erase", &erase);
  m.def("erase_backward", &erase_backward);
  m.def("cross_attention", &cross_attention);
  m.def("cross_attention_backward", &cross_attention_backward);
  m.def("cross_attention_pairs", &cross_attention_pairs);
  m.def("cross_attention_pairs_backward", &cross_attention_pairs_backward);
}
