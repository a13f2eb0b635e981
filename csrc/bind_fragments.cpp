// Bindings of the ops on fragments: contiguous arrays by address.
#include "bind_fragments.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>

#include "fragments.h"

namespace {

namespace py = pybind11;
using sede::index_t;
using Address = std::uintptr_t;

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

void erase(Address attention, Address lengths, index_t rows, index_t length, int dtype, int rule,
           double threshold, index_t keep_min, bool low, bool renormalize, Address out,
           Address mask) {
  const sede::EraseForward op{pointer<const void>(attention),
                              pointer(out),
                              pointer<unsigned char>(mask),
                              pointer<const index_t>(lengths),
                              rows,
                              length,
                              sede::DType(dtype),
                              {sede::Rule(rule), threshold, keep_min, low, renormalize}};
  py::gil_scoped_release release;
  sede::erase(op);
}

void erase_backward(Address grad, Address attention, Address mask, index_t rows, index_t length,
                    int dtype, bool renormalize, Address out) {
  const sede::EraseBackward op{pointer<const void>(grad),
                               pointer<const void>(attention),
                               pointer<const unsigned char>(mask),
                               pointer(out),
                               rows,
                               length,
                               sede::DType(dtype),
                               renormalize};
  py::gil_scoped_release release;
  sede::erase_backward(op);
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

// Fields of CrossPairs in their order, up to the settings.
using Pairs = std::tuple<Address, Address, index_t, index_t, index_t, index_t, index_t, index_t, index_t,
                         Address, Address, bool>;

sede::CrossPairs pairs_call(const Pairs& pairs, const Settings& settings) {
  sede::CrossPairs op{};
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

void cross_pairs(const Pairs& pairs, const Settings& settings, Address out) {
  sede::CrossPairs op = pairs_call(pairs, settings);
  op.out = pointer<float>(out);
  py::gil_scoped_release release;
  sede::cross_pairs(op);
}

void cross_pairs_backward(const Pairs& pairs, const Settings& settings, Address grad,
                          Address d_source, Address d_query) {
  sede::CrossPairs op = pairs_call(pairs, settings);
  op.grad = pointer<const float>(grad);
  op.d_source = pointer<float>(d_source);
  op.d_query = pointer<float>(d_query);
  py::gil_scoped_release release;
  sede::cross_pairs_backward(op);
}

}  // namespace

void bind_fragments(py::module_& m) {
  m.def("erase", &erase);
  m.def("erase_backward", &erase_backward);
  m.def("cross_attention", &cross_attention);
  m.def("cross_attention_backward", &cross_attention_backward);
  m.def("cross_pairs", &cross_pairs);
  m.def("cross_pairs_backward", &cross_pairs_backward);
}
