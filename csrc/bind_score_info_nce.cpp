// The weighted InfoNCE of given scores: addresses, sizes and strides in, nothing of torch.
#include "bind_score_info_nce.h"

#include <pybind11/stl.h>

#include <vector>

#include "bind_checks.h"
#include "score_info_nce.h"

namespace py = pybind11;

namespace {

using sede::index_t;
using namespace sede_bind;

// A number, or the address of one in this dtype.
using ScalarTuple = std::tuple<double, Address, int>;

double value(const char* op, const ScalarTuple& scalar) {
  const auto [number, address, code] = scalar;
  if (address == 0) return number;
  const sede::DType dtype = dtype_of(op, code);
  require(dtype == sede::DType::f32 || dtype == sede::DType::f64, op,
          "a scalar must be float32 or float64");
  if (dtype == sede::DType::f64) return *reinterpret_cast<const double*>(address);
  return double(*reinterpret_cast<const float*>(address));
}

// (weighted, normalize_weights, detach_weights, false_negatives, reduction, moments)
using RuleTuple = std::tuple<bool, bool, bool, int, int, bool>;

// (scores, positive or none, valid, its strides, ids, key_ids, table)
using GivenTuple = std::tuple<MatrixTuple, std::vector<MatrixTuple>, Address, index_t, index_t,
                              Address, Address, Address>;

sede::InfoNceRule rule_of(const char* name, const RuleTuple& rule, const ScalarTuple& temperature,
                          const ScalarTuple& hardness) {
  sede::InfoNceRule out{};
  int false_negatives, reduction;
  std::tie(out.weighted, out.normalize_weights, out.detach_weights, false_negatives, reduction,
           out.moments) = rule;
  require(false_negatives >= 0 && false_negatives <= 2, name,
          "the code of false_negatives is unknown");
  require(reduction >= 0 && reduction <= 2, name, "the code of reduction is unknown");
  out.false_negatives = sede::FalseNegatives(false_negatives);
  out.reduction = sede::Reduction(reduction);
  out.temperature = value(name, temperature);
  out.hardness = value(name, hardness);
  return out;
}

// One column of `rows` numbers, or nothing.
sede::Matrix column(const char* name, const char* what, const std::vector<MatrixTuple>& tuples,
                    index_t rows) {
  if (tuples.empty()) return {};
  const sede::Matrix found = matrix(name, what, tuples[0]);
  require(found.rows == rows && found.cols == 1, name, "a column differs in length");
  require(found.dtype != sede::DType::i8, name, "a column must be floating");
  return found;
}

sede::GivenScores given_of(const char* name, const GivenTuple& tuple) {
  const auto& [scores, positive, valid, valid_row, valid_col, ids, key_ids, table] = tuple;
  sede::GivenScores given{};
  given.scores = matrix(name, "scores", scores);
  require(given.scores.dtype != sede::DType::i8, name, "scores must be floating");
  given.positive = column(name, "positive", positive, given.scores.rows);
  require(given.positive.data || given.scores.rows <= given.scores.cols, name,
          "scores have fewer columns than rows and there is no positive");
  given.valid = optional<const unsigned char>(valid);
  given.valid_row = valid_row;
  given.valid_col = valid_col;
  given.ids = optional<const index_t>(ids);
  given.key_ids = optional<const index_t>(key_ids);
  given.table = array(name, "table", table, given.scores.rows);
  return given;
}

void score_info_nce(const RuleTuple& rule, const ScalarTuple& temperature,
                    const ScalarTuple& hardness, const GivenTuple& given, Address loss,
                    Address negatives, Address hardest_column) {
  const char* name = "score_info_nce";
  const sede::InfoNceRule all = rule_of(name, rule, temperature, hardness);
  const sede::GivenScores of = given_of(name, given);
  const index_t rows = of.scores.rows;
  void* out = array(name, "loss", loss, all.reduction == sede::Reduction::none ? rows : 1);
  index_t* number = array<index_t>(name, "negatives", negatives, rows);
  index_t* at = array<index_t>(name, "hardest_column", hardest_column, rows);
  py::gil_scoped_release release;
  sede::score_info_nce(all, of, out, number, at);
}

void score_info_nce_backward(const RuleTuple& rule, const ScalarTuple& temperature,
                             const ScalarTuple& hardness, const GivenTuple& given, Address grad,
                             index_t grad_step, const std::vector<MatrixTuple>& scores_grad,
                             const std::vector<MatrixTuple>& positive_grad,
                             Address temperature_grad, Address hardness_grad) {
  const char* name = "score_info_nce_backward";
  const sede::InfoNceRule all = rule_of(name, rule, temperature, hardness);
  const sede::GivenScores of = given_of(name, given);
  require(grad_step >= 0, name, "a stride is negative");
  const void* grad_in = array(name, "grad", grad, of.scores.rows);
  sede::ScoreGrads out{};
  if (!scores_grad.empty()) {
    out.scores = matrix(name, "the gradient of scores", scores_grad[0]);
    require(out.scores.rows == of.scores.rows && out.scores.cols == of.scores.cols &&
                out.scores.dtype != sede::DType::i8,
            name, "the gradient of scores is not like scores");
  }
  out.positive = column(name, "the gradient of positive", positive_grad, of.scores.rows);
  out.temperature = optional(temperature_grad);
  out.hardness = optional(hardness_grad);
  py::gil_scoped_release release;
  sede::score_info_nce_backward(all, of, grad_in, grad_step, out);
}

}  // namespace

void bind_score_info_nce(py::module_& m) {
  m.def("score_info_nce", &score_info_nce);
  m.def("score_info_nce_backward", &score_info_nce_backward);
}
