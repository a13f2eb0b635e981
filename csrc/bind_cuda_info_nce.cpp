// Bindings of the weighted InfoNCE; see bind_cuda.h.
#include <array>
#include <cmath>

#include "bind_cuda.h"
#include "cuda/launch/info_nce.h"

namespace sede_cuda {
namespace {

// (query, key, bank, row scale, bank ids, ids, limit); a bank of no rows is none.
using LossSideTuple =
    std::tuple<MatrixTuple, MatrixTuple, MatrixTuple, Address, Address, Address, Address>;
// (weighted, detached, further, exponents, accumulators, select, margin, in batch, mean, reduced,
//  hardest, moments, unit length, focus, tau plus)
using RuleTuple = std::tuple<bool, bool, bool, int, int, int, bool, bool, bool, bool, bool, bool,
                             bool, double, double>;

Matrix bank_of(const char* name, const MatrixTuple& rows) {
  if (std::get<1>(rows) > 0) return matrix(name, rows);
  Matrix none{};
  none.cols = std::get<2>(rows);
  none.dtype = std::get<5>(rows);
  return none;
}

Loss loss_of(const char* name, const std::vector<LossSideTuple>& sides,
             const std::array<NumberTuple, 3>& numbers, Address batch, const RuleTuple& rule) {
  const auto [weighted, detached, further, exponents, accumulators, select, margin, in_batch, mean,
              reduced, hardest, moments, unit_length, focus, tau_plus] = rule;
  require(sides.size() == 1 || sides.size() == 2, name, "there must be one or two sides");
  require(exponents >= 1 && exponents <= 2 && accumulators >= 0 && accumulators <= exponents, name,
          "exponents or accumulators are out of range");
  require(select >= keep && select <= positive, name, "the code of select is unknown");
  Loss loss{};
  for (const auto& [query, key, bank, row_scale, bank_ids, ids, limit] : sides) {
    const LossSide side{matrix(name, query), matrix(name, key), bank_of(name, bank),
                        pointer<const float>(row_scale), pointer<const index_t>(bank_ids),
                        pointer<const index_t>(ids), pointer<const float>(limit)};
    fits(name, side.query, side.key, 0);
    require(side.query.rows == side.key.rows, name, "query and key differ in length");
    if (side.bank.rows > 0) fits(name, side.query, side.bank, row_scale);
    loss.sides.push_back(side);
    require(side.query.rows == loss.sides[0].query.rows &&
                side.query.cols == loss.sides[0].query.cols &&
                side.query.dtype == loss.sides[0].query.dtype,
            name, "the queries of the two sides differ");
  }
  loss.rule = {weighted, detached, further, tau_plus != 0, float(std::log(tau_plus)),
               float(std::log1p(-tau_plus)), float(focus)};
  loss.scalars = scalars_of(name, numbers[0], numbers[1], weighted);
  const auto [most, most_at, most_dtype] = numbers[2];
  loss.limited = margin;
  loss.margin = {float(most), pointer<const void>(most_at), most_dtype};
  loss.exponents = exponents;
  loss.accumulators = accumulators;
  loss.select = select;
  loss.moments = moments;
  loss.hardest = hardest;
  loss.unit_length = unit_length;
  loss.in_batch = in_batch;
  loss.mean = mean;
  loss.reduced = reduced;
  loss.batch_at = in_batch ? pointer<const unsigned char>(batch) : nullptr;
  return loss;
}

// out: loss, table, query gradient, negatives, index of the hardest, slots
index_t call_info_nce(Address stream, const std::vector<LossSideTuple>& sides,
                      const std::array<NumberTuple, 3>& numbers, Address batch,
                      const RuleTuple& rule, const std::array<Address, 6>& out, bool tf32,
                      Address memory) {
  const char* name = "info_nce";
  Loss loss = loss_of(name, sides, numbers, batch, rule);
  loss.tf32 = tf32;
  require(out[0] != 0 && out[1] != 0 && out[5] != 0, name, "a result has no address");
  require(loss.accumulators == 0 || out[2] != 0, name, "there is no memory for the gradient");
  const LossResults to{pointer<float>(out[0]),   pointer<float>(out[1]),   pointer<float>(out[2]),
                       pointer<index_t>(out[3]), pointer<index_t>(out[4]), pointer<int>(out[5])};
  return info_nce(loss, to, pointer<void>(memory), pointer<void>(stream));
}

// saved: upstream gradient, table, query gradient; to: query, key, other query, other key,
// temperature, hardness
index_t call_info_nce_backward(Address stream, const std::vector<LossSideTuple>& sides,
                               const std::array<NumberTuple, 3>& numbers, Address batch,
                               const RuleTuple& rule, const std::array<Address, 3>& saved,
                               index_t step, const std::array<Address, 6>& to, Address memory) {
  const char* name = "info_nce_backward";
  const Loss loss = loss_of(name, sides, numbers, batch, rule);
  require(saved[0] != 0 && saved[1] != 0, name, "what the forward left has no address");
  require(saved[2] != 0 || (to[0] == 0 && to[2] == 0), name, "the forward left no gradient");
  InfoNceScale op{};
  op.upstream = pointer<const float>(saved[0]);
  op.step = step;
  op.table = pointer<const float>(saved[1]);
  op.grad = pointer<const float>(saved[2]);
  op.query_dtype = loss.sides[0].query.dtype;
  for (size_t n = 0; n < loss.sides.size(); ++n) {
    op.to_query[n] = pointer<void>(to[2 * n]);
    op.to_key[n] = pointer<void>(to[2 * n + 1]);
    op.key_dtype[n] = loss.sides[n].key.dtype;
  }
  op.to_temperature = pointer<float>(to[4]);
  op.to_hardness = pointer<float>(to[5]);
  const bool through = loss.in_batch && (to[0] != 0 || to[1] != 0 || to[2] != 0 || to[3] != 0);
  return info_nce_backward(loss, op, through, pointer<void>(memory), pointer<void>(stream));
}

}  // namespace

void bind_info_nce(pybind11::module_& m) {
  m.def("info_nce", &call_info_nce);
  m.def("info_nce_backward", &call_info_nce_backward);
}

}  // namespace sede_cuda
