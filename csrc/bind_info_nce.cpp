// The weighted InfoNCE: addresses, sizes and strides in, nothing of torch.
#include "bind_info_nce.h"

#include <pybind11/stl.h>

#include <vector>

#include "bind_checks.h"
#include "info_nce.h"

namespace py = pybind11;

namespace {

using sede::index_t;
using namespace sede_bind;

// A number, or the address of one in this dtype.
using ScalarTuple = std::tuple<double, Address, int>;

// (weighted, normalize_weights, detach_weights, positive_focus, tau_plus, false_negatives,
//  reduction, moments, hardest)
using RuleTuple = std::tuple<bool, bool, bool, double, double, int, int, bool, bool>;

// (query, positive, bank, row_scale, bank_ids, ids, table, query_grad, negatives, hardest_index,
//  scores)
using SideTuple = std::tuple<MatrixTuple, MatrixTuple, MatrixTuple, Address, Address, Address,
                             Address, Address, Address, Address, Address>;

double value(const char* name, const ScalarTuple& scalar) {
  const auto [number, address, code] = scalar;
  if (address == 0) return number;
  const sede::DType dtype = dtype_of(name, code);
  require(dtype == sede::DType::f32 || dtype == sede::DType::f64, name,
          "a scalar must be float32 or float64");
  if (dtype == sede::DType::f64) return *reinterpret_cast<const double*>(address);
  return double(*reinterpret_cast<const float*>(address));
}

// margin: empty for none. in_batch: a number that says yes or no, or the address of a bool.
sede::InfoNceRule rule_of(const char* name, const RuleTuple& rule, const ScalarTuple& temperature,
                          const ScalarTuple& hardness, const std::vector<ScalarTuple>& margin,
                          const ScalarTuple& in_batch, std::size_t sides) {
  sede::InfoNceRule out{};
  int false_negatives, reduction;
  std::tie(out.weighted, out.normalize_weights, out.detach_weights, out.positive_focus,
           out.tau_plus, false_negatives, reduction, out.moments, out.hardest) = rule;
  require(false_negatives >= 0 && false_negatives <= 2, name,
          "the code of false_negatives is unknown");
  require(reduction >= 0 && reduction <= 2, name, "the code of reduction is unknown");
  require(sides == 1 || sides == 2, name, "there must be one side or two");
  out.false_negatives = sede::FalseNegatives(false_negatives);
  out.reduction = sede::Reduction(reduction);
  out.temperature = value(name, temperature);
  out.hardness = value(name, hardness);
  out.has_margin = !margin.empty();
  if (out.has_margin) out.margin = value(name, margin[0]);
  const Address flag = std::get<1>(in_batch);
  out.in_batch = flag ? *reinterpret_cast<const bool*>(flag) : std::get<0>(in_batch) != 0;
  out.share = 1.0 / double(sides);
  return out;
}

std::vector<sede::InfoNceSide> sides_of(const char* name, const std::vector<SideTuple>& sides) {
  std::vector<sede::InfoNceSide> out;
  for (const SideTuple& tuple : sides) {
    const auto& [query, positive, bank, row_scale, bank_ids, ids, table, query_grad, negatives,
                 hardest_index, scores] = tuple;
    sede::InfoNceSide side{};
    side.query = matrix(name, "query", query);
    side.positive = matrix(name, "positive", positive);
    side.bank = matrix(name, "bank", bank);
    side.row_scale = optional<const float>(row_scale);
    side.bank_ids = optional<const index_t>(bank_ids);
    side.ids = optional<const index_t>(ids);
    const index_t rows = side.query.rows;
    require(side.positive.rows == rows && side.positive.cols == side.query.cols, name,
            "query and positive differ in shape");
    require(side.bank.cols == side.query.cols, name, "query and bank differ in width");
    require(side.query.dtype != sede::DType::i8 && side.positive.dtype != sede::DType::i8, name,
            "query and positive must be floating");
    require((side.bank.dtype == sede::DType::i8) == (side.row_scale != nullptr), name,
            "an int8 bank, and no other, has row scales");
    side.table = array(name, "table", table, rows);
    side.query_grad = optional(query_grad);
    side.negatives = optional<index_t>(negatives);
    side.hardest_index = optional<index_t>(hardest_index);
    side.scores = optional(scores);
    require(out.empty() || (out[0].query.rows == rows && out[0].query.dtype == side.query.dtype),
            name, "the queries of both sides differ in length or dtype");
    out.push_back(side);
  }
  return out;
}

void info_nce(const RuleTuple& rule, const ScalarTuple& temperature, const ScalarTuple& hardness,
              const std::vector<ScalarTuple>& margin, const ScalarTuple& in_batch,
              const std::vector<SideTuple>& sides, Address loss) {
  const char* name = "info_nce";
  const sede::InfoNceRule all =
      rule_of(name, rule, temperature, hardness, margin, in_batch, sides.size());
  const std::vector<sede::InfoNceSide> of = sides_of(name, sides);
  void* out = array(name, "loss", loss, all.reduction == sede::Reduction::none ? of[0].query.rows : 1);
  py::gil_scoped_release release;
  sede::info_nce(all, of, out);
}

void info_nce_backward(const RuleTuple& rule, const ScalarTuple& temperature,
                       const ScalarTuple& hardness, const std::vector<ScalarTuple>& margin,
                       const ScalarTuple& in_batch, const std::vector<SideTuple>& sides,
                       Address grad, index_t grad_step,
                       const std::vector<std::tuple<Address, Address>>& out,
                       Address temperature_grad, Address hardness_grad) {
  const char* name = "info_nce_backward";
  const sede::InfoNceRule all =
      rule_of(name, rule, temperature, hardness, margin, in_batch, sides.size());
  const std::vector<sede::InfoNceSide> of = sides_of(name, sides);
  require(out.size() == of.size(), name, "each side has its gradients");
  require(grad_step >= 0, name, "a stride is negative");
  std::vector<sede::InfoNceGrads> grads;
  for (std::size_t n = 0; n < of.size(); ++n) {
    const auto [query, positive] = out[n];
    require(query == 0 || of[n].query_grad || of[n].query.rows * of[n].query.cols == 0, name,
            "the forward kept no query gradient");
    grads.push_back({optional(query), optional(positive)});
  }
  const void* grad_in = array(name, "grad", grad, of[0].query.rows);
  py::gil_scoped_release release;
  sede::info_nce_backward(all, of, grad_in, grad_step, grads, optional(temperature_grad),
                          optional(hardness_grad));
}

}  // namespace

void bind_info_nce(py::module_& m) {
  m.def("info_nce", &info_nce);
  m.def("info_nce_backward", &info_nce_backward);
}
