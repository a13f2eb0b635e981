#include "info_nce.h"

namespace sede_cuda {
namespace {

constexpr unsigned kRowThreads = 128;

// What a pass of the loss looks for; exponents stay in their order.
Want wanted(const Loss& loss, int accumulators) {
  return {nullptr,      {0, 1, 0},   loss.exponents, accumulators, loss.moments,
          loss.hardest, loss.scalars, 0,              loss.unit_length};
}

// Of further positives: at 1 / tau and at 0.
Want wanted_further(const Loss& loss, int accumulators) {
  return {nullptr, {0, 1, 0}, 2, accumulators, 1, 0, loss.scalars, 1, 0};
}

Match match_of(const LossSide& side, int select, bool in_batch) {
  return {side.ids, in_batch ? side.ids : side.bank_ids, select == positive ? nullptr : side.limit,
          select, in_batch};
}

// The passes over every side's bank, or over its batch.
struct Segment {
  bool in_batch;
  Want want, further;
  Partial InfoNceSide::*found;
  Partial InfoNceSide::*found_further;
};

// A bank without rows has no parts.
void search(const Loss& loss, const Segment& segment, InfoNceSide* to, Scratch& scratch,
            Stream stream) {
  Passes passes{{}, segment.want, segment.further, loss.margin, loss.tf32};
  std::vector<Partial*> places;
  for (int further = 0; further < (loss.rule.further != 0 ? 2 : 1); ++further)
    for (size_t n = 0; n < loss.sides.size(); ++n) {
      const LossSide& side = loss.sides[n];
      if (!segment.in_batch && side.bank.rows == 0) continue;
      const Matrix& rows = segment.in_batch ? side.key : side.bank;
      const int select = further != 0 ? int(positive) : loss.select;
      BankSide bank{side.query, rows, segment.in_batch ? nullptr : side.row_scale,
                    match_of(side, select, segment.in_batch), {}, further != 0};
      if (loss.limited && select != positive) bank.key = side.key;
      passes.sides.push_back(bank);
      places.push_back(&(to[n].*(further != 0 ? segment.found_further : segment.found)));
    }
  const std::vector<Partial> found = bank_pass(passes, scratch, stream);
  for (size_t i = 0; i < found.size(); ++i) *places[i] = found[i];
}

// Weights that all rows' losses decide; those of a row's own are in the table.
bool focused_mean(const Loss& loss) { return loss.rule.focus != 0.f && loss.mean; }

}  // namespace

index_t info_nce(const Loss& loss, const LossResults& to, void* memory, Stream stream) {
  Scratch scratch(memory);
  const index_t B = loss.sides[0].query.rows;
  const size_t sides = loss.sides.size();
  const bool grad = to.grad != nullptr;

  InfoNceFinish op{};
  op.want = wanted(loss, loss.accumulators);
  op.want_of_batch = wanted(loss, 0);
  op.further = wanted_further(loss, grad ? 2 : 0);
  op.further_of_batch = wanted_further(loss, 0);
  search(loss, {false, op.want, op.further, &InfoNceSide::bank, &InfoNceSide::bank_further},
         op.side, scratch, stream);
  if (loss.in_batch)
    search(loss, {true, op.want_of_batch, op.further_of_batch, &InfoNceSide::batch,
                  &InfoNceSide::batch_further},
           op.side, scratch, stream);
  if (scratch.counting()) return scratch.most();

  for (size_t n = 0; n < sides; ++n) {
    op.side[n].query = loss.sides[n].query;
    op.side[n].key = loss.sides[n].key;
    op.side[n].bank_scaled = loss.sides[n].row_scale != nullptr;
  }
  const float share = 1.f / float(sides);
  op.sides = int(sides);
  op.rows = B;
  op.dim = loss.sides[0].query.cols;
  op.rule = loss.rule;
  op.batch_at = loss.batch_at;
  const bool focused = focused_mean(loss);
  op.scale = loss.mean && !focused ? share / float(B) : share;
  op.focus = focused ? loss.rule.focus : 0.f;
  op.reduced = loss.reduced;
  op.loss = to.loss;
  op.table = to.table;
  op.grad = to.grad;
  op.count = to.count;
  op.index = to.index;
  op.slots = to.slots;
  if (focused) op.rule.focus = 0.f;  // of every row's own
  launch(Image::info_nce, "info_nce_finish", {unsigned(B)}, kRowThreads, 0, stream, &op);
  return scratch.most();
}

index_t info_nce_backward(const Loss& loss, InfoNceScale op, bool through, void* memory,
                          Stream stream) {
  Scratch scratch(memory);
  const index_t B = loss.sides[0].query.rows, D = loss.sides[0].query.cols;
  const size_t sides = loss.sides.size();
  op.focused = focused_mean(loss);
  if (through) {
    float* query = scratch.take<float>(index_t(sides) * B * D);
    float* key = scratch.take<float>(index_t(sides) * B * D);
    op.added_query = query;
    op.added_key = key;
    BatchGradient batch{};
    Gradients& of = batch.of;
    of.want[0] = wanted(loss, 0);
    of.want[1] = wanted_further(loss, 0);
    of.terms = loss.rule.further != 0 ? 2 : 1;
    of.rows = B;
    of.limited = loss.limited && loss.select != positive;
    of.margin = loss.margin;
    of.upstream = op.upstream;
    of.step = op.step;
    of.batch = loss.batch_at;
    batch.sides = int(sides);
    for (size_t n = 0; n < sides; ++n) {
      const LossSide& side = loss.sides[n];
      const float* table = op.table + index_t(n) * kTable * B;
      of.side[n] = {side.query,
                    side.key,
                    {{table + kLse * B, table + kLseGrad * B, match_of(side, loss.select, true)},
                     {table + kExtraLse * B, table + kExtraGrad * B, match_of(side, positive, true)}},
                    table + kPositive * B,
                    op.focused ? table + kWeight * B : nullptr,
                    nullptr};
      batch.query_grad[n] = query + index_t(n) * B * D;
      batch.key_grad[n] = key + index_t(n) * B * D;
    }
    batch_lse_backward(batch, scratch, stream);
  }
  if (scratch.counting()) return scratch.most();
  for (size_t n = 0; n < sides; ++n) op.query[n] = loss.sides[n].query;
  op.sides = int(sides);
  op.rows = B;
  op.dim = D;
  const bool scalar = op.to_temperature != nullptr || op.to_hardness != nullptr;
  launch(Image::info_nce, "info_nce_scale", {unsigned(B) + scalar}, kRowThreads, 0, stream, &op);
  return scratch.most();
}

}  // namespace sede_cuda
