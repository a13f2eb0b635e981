// Driver of the weighted InfoNCE: the passes over bank and batch, and their gradients.
#include "info_nce.h"

#include <algorithm>

#include "buffer.h"
#include "drivers.h"
#include "info_nce_table.h"

namespace sede {
namespace {

// Room for the sums of a pass over B queries.
template <class T>
struct Sums {
  std::vector<T> lse, moment, top;
  std::vector<index_t> count, top_index;

  Sums(index_t rows, int exponents, bool moments, bool hardest)
      : lse(std::size_t(rows * exponents)),
        moment(std::size_t(moments ? rows * exponents : 0)),
        top(std::size_t(hardest ? rows : 0)),
        count(static_cast<std::size_t>(rows)),
        top_index(std::size_t(hardest ? rows : 0)) {}

  // Runs the pass and says where its sums are.
  InfoNceSums run(BankLse op, T* acc, bool in_bank) {
    op.moments = !moment.empty();
    op.hardest = !top.empty();
    op.accumulators = acc ? op.accumulators : 0;
    bank_lse(op, {lse.data(), moment.data(), acc, count.data(), top.data(), top_index.data()});
    return {lse.data(), op.moments ? moment.data() : nullptr, acc, count.data(),
            op.hardest ? top.data() : nullptr, op.hardest ? top_index.data() : nullptr, in_bank};
  }
};

BankLse bank_pass(const InfoNceSide& side, const void* scales, int exponents, int accumulators,
                  Select select, const void* limit) {
  BankLse op{};
  op.query = side.query;
  op.bank = side.bank;
  op.row_scale = side.row_scale;
  op.query_ids = side.ids;
  op.bank_ids = side.bank_ids;
  op.scales = scales;
  op.exponents = exponents;
  op.limit = limit;
  op.select = select;
  op.empty_slots = true;
  op.accumulators = accumulators;
  op.accumulate[1] = 1;
  return op;
}

BankLse batch_pass(const InfoNceSide& side, const void* scales, int exponents, Select select,
                   const void* limit) {
  BankLse op = bank_pass(side, scales, exponents, 0, select, limit);
  op.bank = side.positive;
  op.row_scale = nullptr;
  op.bank_ids = side.ids;
  op.empty_slots = false;
  op.skip_diagonal = true;
  return op;
}

Select select_of(const InfoNceRule& rule) {
  return rule.false_negatives == FalseNegatives::keep ? Select::keep : Select::mask;
}

// 1 / tau + beta (or 1 / tau), beta, and the two of further positives.
template <class T>
struct Scales {
  T negatives[2], extra[2];
  explicit Scales(const InfoNceRule& rule)
      : negatives{T(1 / rule.temperature + (rule.weighted ? rule.hardness : 0)), T(rule.hardness)},
        extra{T(1 / rule.temperature), T(0)} {}
};

// Without ids on both sides no row has further positives.
bool finds_extra(const InfoNceSide& side, const index_t* ids) { return side.ids && ids; }

// Largest similarity of each row's negatives, or null; `room` is for those of a margin.
template <class T>
const void* limits(const InfoNceRule& rule, const InfoNceSide& side, std::vector<T>& room) {
  if (!rule.has_margin) return side.limit;
  const T* positive = table_row<T>(side, kPositive);
  for (index_t i = 0; i < side.query.rows; ++i) room.push_back(positive[i] + T(rule.margin));
  return room.data();
}

template <class T>
void forward(const InfoNceRule& rule, const InfoNceSide& side, T* loss) {
  const index_t rows = side.query.rows, dim = side.query.cols;
  const Scales<T> scales(rule);
  const int exponents = rule.exponents(), accumulators = rule.accumulators();
  over_rows(rows, dim, [&](index_t begin, index_t end) {
    row_ops<T>().dots(side.query, side.positive, begin, end, table_row<T>(side, kPositive));
  });
  std::vector<T> room;
  const void* most = limits<T>(rule, side, room);
  T* grad = static_cast<T*>(side.query_grad);
  const bool further = rule.extra_positives() && finds_extra(side, side.bank_ids);
  Buffer second(grad && accumulators == 2 ? 2 * rows * dim * index_t(sizeof(T)) : 0);
  Buffer third(grad && further ? 2 * rows * dim * index_t(sizeof(T)) : 0);

  std::vector<InfoNceSums> sums, extra;
  Sums<T> bank(rows, exponents, rule.moments, rule.hardest), batch = bank;
  Sums<T> bank_extra(rows, 2, true, false), batch_extra = bank_extra;
  if (side.bank.rows > 0)
    sums.push_back(bank.run(
        bank_pass(side, scales.negatives, exponents, accumulators, select_of(rule), most),
        grad && accumulators == 2 ? second.as<T>() : grad, true));
  if (rule.in_batch) {
    BankLse op = batch_pass(side, scales.negatives, exponents, select_of(rule), most);
    op.scores = side.scores;
    sums.push_back(batch.run(op, nullptr, false));
  }
  if (further && side.bank.rows > 0)
    extra.push_back(bank_extra.run(
        bank_pass(side, scales.extra, 2, 2, Select::positive, nullptr),
        grad ? third.as<T>() : nullptr, true));
  if (rule.in_batch && rule.extra_positives() && side.ids)
    extra.push_back(batch_extra.run(
        batch_pass(side, scales.extra, 2, Select::positive, nullptr), nullptr, false));
  info_nce_finish(rule, side, sums, extra, loss);
}

// What in-batch negatives add to the gradients of queries and keys.
template <class T>
void batch_backward(const InfoNceRule& rule, const InfoNceSide& side, const T* grad,
                    index_t grad_step, T* query, T* key) {
  const index_t rows = side.query.rows, size = rows * side.query.cols;
  const Scales<T> scales(rule);
  std::vector<T> room, weighted(std::size_t(2 * rows));
  auto scaled = [&](int from) {
    const T* row = table_row<T>(side, from);
    for (index_t n = 0; n < 2 * rows; ++n)
      weighted[std::size_t(n)] = row[n] * grad[n % rows * grad_step];
    return weighted.data();
  };
  BankLse op = batch_pass(side, scales.negatives, rule.exponents(), select_of(rule),
                          limits<T>(rule, side, room));
  op.scores = side.scores;
  batch_lse_backward(op, table_row<T>(side, kLse), scaled(kLseGrad), query, key);
  if (!rule.extra_positives() || !side.ids) return;
  Buffer more(2 * size * index_t(sizeof(T)));
  op = batch_pass(side, scales.extra, 2, Select::positive, nullptr);
  batch_lse_backward(op, table_row<T>(side, kExtraLse), scaled(kExtraGrad), more.as<T>(),
                     more.as<T>() + size);
  for (index_t n = 0; n < size; ++n) {
    query[n] += more.as<T>()[n];
    key[n] += more.as<T>()[size + n];
  }
}

template <class T>
void backward(const InfoNceRule& rule, const InfoNceSide& side, const T* grad, index_t grad_step,
              const InfoNceGrads& out) {
  const index_t rows = side.query.rows, dim = side.query.cols, size = rows * dim;
  constexpr DType type = std::is_same_v<T, float> ? DType::f32 : DType::f64;
  // What the batch adds goes where the gradient will be, if it has this type.
  const bool query_there = out.query && side.query.dtype == type;
  const bool key_there = out.positive && side.positive.dtype == type;
  Buffer room(rule.in_batch ? (2 - query_there - key_there) * size * index_t(sizeof(T)) : 0);
  T* query = query_there ? static_cast<T*>(out.query) : room.as<T>();
  T* key = key_there ? static_cast<T*>(out.positive) : room.as<T>() + (query_there ? 0 : size);
  if (!rule.in_batch) query = key = nullptr;
  if (rule.in_batch && size > 0) batch_backward(rule, side, grad, grad_step, query, key);
  const Matrix unit{side.query_grad, rows, dim, dim, 1, type};
  const ScaleCall<T> to_query{unit,  grad,      grad_step, nullptr,
                              query, out.query, side.query.dtype};
  const ScaleCall<T> to_positive{side.query, grad,         grad_step,
                                 table_row<T>(side, kPositiveGrad), key,
                                 out.positive, side.positive.dtype};
  over_rows(rows, dim, [&](index_t begin, index_t end) {
    if (out.query) row_ops<T>().scale(to_query, begin, end);
    if (out.positive) row_ops<T>().scale(to_positive, begin, end);
  });
}

template <class T>
double dot_with_grad(const std::vector<InfoNceSide>& sides, int row, const T* grad,
                     index_t grad_step) {
  double sum = 0;
  for (const InfoNceSide& side : sides)
    for (index_t i = 0; i < side.query.rows; ++i)
      sum += double(table_row<T>(side, row)[i]) * double(grad[i * grad_step]);
  return sum;
}

template <class T>
void run(const InfoNceRule& rule, const std::vector<InfoNceSide>& sides, T* loss) {
  const index_t rows = sides[0].query.rows;
  std::fill(loss, loss + (rule.reduction == Reduction::none ? rows : 1), T(0));
  if (rows == 0) return;
  for (const InfoNceSide& side : sides) forward<T>(rule, side, loss);
}

template <class T>
void run_backward(const InfoNceRule& rule, const std::vector<InfoNceSide>& sides, const T* grad,
                  index_t grad_step, const std::vector<InfoNceGrads>& out, T* temperature,
                  T* hardness) {
  for (std::size_t n = 0; n < sides.size() && sides[0].query.rows > 0; ++n)
    backward<T>(rule, sides[n], grad, grad_step, out[n]);
  if (temperature) *temperature = T(dot_with_grad<T>(sides, kTemperatureGrad, grad, grad_step));
  if (hardness) *hardness = T(dot_with_grad<T>(sides, kHardnessGrad, grad, grad_step));
}

}  // namespace

void info_nce(const InfoNceRule& rule, const std::vector<InfoNceSide>& sides, void* loss) {
  if (in_double(sides[0])) return run<double>(rule, sides, static_cast<double*>(loss));
  run<float>(rule, sides, static_cast<float*>(loss));
}

void info_nce_backward(const InfoNceRule& rule, const std::vector<InfoNceSide>& sides,
                       const void* grad, index_t grad_step, const std::vector<InfoNceGrads>& out,
                       void* temperature, void* hardness) {
  if (in_double(sides[0]))
    return run_backward<double>(rule, sides, static_cast<const double*>(grad), grad_step, out,
                                static_cast<double*>(temperature), static_cast<double*>(hardness));
  run_backward<float>(rule, sides, static_cast<const float*>(grad), grad_step, out,
                      static_cast<float*>(temperature), static_cast<float*>(hardness));
}

}  // namespace sede
