// Bindings of the weighted InfoNCE of given scores; see bind_cuda.h.
#include <array>

#include "bind_cuda.h"
#include "cuda/launch/score_info_nce.h"

namespace sede_cuda {
namespace {

// (keep, further, weighted, normalized, detached, mean, reduced)
using RuleTuple = std::tuple<bool, bool, bool, bool, bool, bool, bool>;
// (scores, positive or rows of 0, valid, its strides, ids, ids of the keys)
using ScoresTuple =
    std::tuple<MatrixTuple, MatrixTuple, Address, index_t, index_t, Address, Address>;

Scores scores_of(const char* name, const ScoresTuple& given, const NumberTuple& temperature,
                 const NumberTuple& hardness, const RuleTuple& rule) {
  const auto& [scores, positive, valid, valid_row, valid_col, ids, key_ids] = given;
  const auto [keep, further, weighted, normalized, detached, mean, reduced] = rule;
  Scores found{};
  found.scores = matrix(name, scores);
  if (std::get<1>(positive) > 0) found.positive = matrix(name, positive);
  require(found.scores.dtype != i8, name, "scores must be floating");
  require(found.positive.data == nullptr || found.positive.rows == found.scores.rows, name,
          "scores and positives differ in length");
  require(found.positive.data != nullptr || found.scores.cols >= found.scores.rows, name,
          "there are fewer keys than queries");
  found.valid = pointer<const unsigned char>(valid);
  found.valid_row = valid_row;
  found.valid_col = valid_col;
  found.ids = pointer<const index_t>(ids);
  found.key_ids = pointer<const index_t>(key_ids);
  found.keep = keep;
  found.further = further && ids != 0 && key_ids != 0;
  found.weighted = weighted;
  found.normalized = normalized;
  found.detached = detached;
  found.scalars = scalars_of(name, temperature, hardness, weighted);
  return found;
}

// out: loss, table, negatives, column of the hardest, slots
void call_score_info_nce(Address stream, const ScoresTuple& given, const NumberTuple& temperature,
                         const NumberTuple& hardness, const RuleTuple& rule,
                         const std::array<Address, 5>& out) {
  const char* name = "score_info_nce";
  const Scores scores = scores_of(name, given, temperature, hardness, rule);
  const bool mean = std::get<5>(rule), reduced = std::get<6>(rule);
  for (const Address at : out) require(at != 0, name, "a result has no address");
  const ScoreForward op{scores,
                        mean ? 1.f / float(scores.scores.rows) : 1.f,
                        reduced,
                        pointer<float>(out[0]),
                        pointer<float>(out[1]),
                        pointer<index_t>(out[2]),
                        pointer<index_t>(out[3]),
                        pointer<int>(out[4])};
  score_info_nce(op, pointer<void>(stream));
}

// saved: upstream gradient, table; to: scores, positive, temperature, hardness
void call_score_info_nce_backward(Address stream, const ScoresTuple& given,
                                  const NumberTuple& temperature, const NumberTuple& hardness,
                                  const RuleTuple& rule, const std::array<Address, 2>& saved,
                                  index_t step, const std::array<Address, 4>& to,
                                  index_t row_stride, index_t col_stride) {
  const char* name = "score_info_nce_backward";
  require(saved[0] != 0 && saved[1] != 0, name, "what the forward left has no address");
  const Scores scores = scores_of(name, given, temperature, hardness, rule);
  const ScoreBackward op{scores,
                         pointer<const float>(saved[0]),
                         step,
                         pointer<const float>(saved[1]),
                         pointer<void>(to[0]),
                         pointer<void>(to[1]),
                         row_stride,
                         col_stride,
                         pointer<float>(to[2]),
                         pointer<float>(to[3])};
  score_info_nce_backward(op, pointer<void>(stream));
}

}  // namespace

void bind_score_info_nce(pybind11::module_& m) {
  m.def("score_info_nce", &call_score_info_nce);
  m.def("score_info_nce_backward", &call_score_info_nce_backward);
}

}  // namespace sede_cuda
