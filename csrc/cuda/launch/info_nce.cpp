#include "info_nce.h"

namespace sede_cuda {
namespace {

constexpr unsigned kRowThreads = 128;
constexpr index_t kFocusBlocks = 128;

// What a pass of the loss looks for; exponents stay in their order.
Want wanted(const Loss& loss, int accumulators) {
  return {nullptr,      {0, 1, 0},   loss.exponents, accumulators, loss.moments,
          loss.hardest, loss.scalars, 0,              loss.unit_length};
}

// Of further positives: at 1 / tau and at 0.
Want wanted_further(const Loss& loss, int accumulators) {
  return {nullptr, {0, 1, 0}, 2, accumulators, 1, 0, loss.scalars, 1, 0};
}

// [sides, B] largest similarities that count, or null.
float* limits(const Loss& loss, Scratch& scratch, Stream stream) {
  if (!loss.margin.there) return nullptr;
  const index_t B = loss.sides[0].query.rows;
  InfoNceLimits op{};
  op.margin = loss.margin.number;
  op.margin_at = loss.margin.at;
  op.margin_dtype = loss.margin.dtype;
  op.limit = scratch.take<float>(B * index_t(loss.sides.size()));
  for (size_t n = 0; n < loss.sides.size(); ++n) {
    op.query[n] = loss.sides[n].query;
    op.key[n] = loss.sides[n].key;
  }
  if (!scratch.counting())
    launch(Image::info_nce, "info_nce_limits", {unsigned(B), unsigned(loss.sides.size())},
           kRowThreads, 0, stream, &op);
  return op.limit;
}

Match match_of(const LossSide& side, int n, const float* limit, int select, bool in_batch) {
  const float* most = limit == nullptr ? side.limit : limit + n * side.query.rows;
  return {side.ids, in_batch ? side.ids : side.bank_ids, select == positive ? nullptr : most,
          select, in_batch};
}

// The parts of every side's bank, or of its batch; none of a bank without rows.
std::vector<Partial> segments(const Loss& loss, const Want& want, const float* limit, int select,
                              bool in_batch, Scratch& scratch, Stream stream) {
  std::vector<BankSide> banks;
  std::vector<Partial> found(loss.sides.size());
  for (size_t n = 0; n < loss.sides.size(); ++n) {
    const LossSide& side = loss.sides[n];
    const Match match = match_of(side, int(n), limit, select, in_batch);
    if (in_batch)
      banks.push_back({side.query, side.key, nullptr, match, {}});
    else if (side.bank.rows > 0)
      banks.push_back({side.query, side.bank, side.row_scale, match, {}});
  }
  if (banks.empty()) return found;
  const std::vector<Partial> parts = bank_pass(banks, want, scratch, stream);
  size_t next = 0;
  for (size_t n = 0; n < loss.sides.size(); ++n)
    if (in_batch || loss.sides[n].bank.rows > 0) found[n] = parts[next++];
  return found;
}

}  // namespace

index_t info_nce(const Loss& loss, const LossResults& to, void* memory, Stream stream) {
  Scratch scratch(memory);
  const index_t B = loss.sides[0].query.rows;
  const size_t sides = loss.sides.size();
  const bool grad = to.grad != nullptr, further = loss.rule.further != 0;
  const bool focused_mean = loss.rule.focus != 0.f && loss.mean;

  InfoNceFinish op{};
  op.want = wanted(loss, loss.accumulators);
  op.want_of_batch = wanted(loss, 0);
  op.further = wanted_further(loss, grad ? 2 : 0);
  op.further_of_batch = wanted_further(loss, 0);
  const float* limit = limits(loss, scratch, stream);
  const auto pass = [&](const Want& want, bool others, Partial InfoNceSide::*to_part, bool there,
                        const float* most, int select) {
    if (!there) return;
    const auto found = segments(loss, want, most, select, others, scratch, stream);
    for (size_t n = 0; n < sides; ++n) op.side[n].*to_part = found[n];
  };
  pass(op.want, false, &InfoNceSide::bank, true, limit, loss.select);
  pass(op.want_of_batch, true, &InfoNceSide::batch, loss.in_batch, limit, loss.select);
  pass(op.further, false, &InfoNceSide::bank_further, further, nullptr, positive);
  pass(op.further_of_batch, true, &InfoNceSide::batch_further, further && loss.in_batch, nullptr,
       positive);
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
  op.scale = focused_mean ? 1.f : loss.mean ? share / float(B) : share;
  op.reduced = loss.reduced;
  op.loss = focused_mean ? nullptr : to.loss;
  op.table = to.table;
  op.grad = to.grad;
  op.count = to.count;
  op.index = to.index;
  op.slots = to.slots;
  if (focused_mean) op.rule.focus = 0.f;  // of every row's own; the mean's come after all losses
  launch(Image::info_nce, "info_nce_finish", {unsigned(B)}, kRowThreads, 0, stream, &op);
  if (!focused_mean) return scratch.most();
  const InfoNceFocus focus{op.sides, B, op.dim, loss.rule.focus, share, to.table, to.grad, to.loss};
  launch(Image::info_nce, "info_nce_focus", {unsigned(std::min(B, kFocusBlocks))}, kFocusThreads, 0,
         stream, &focus);
  return scratch.most();
}

index_t info_nce_backward(const Loss& loss, InfoNceScale op, bool through, void* memory,
                          Stream stream) {
  Scratch scratch(memory);
  const index_t B = loss.sides[0].query.rows, D = loss.sides[0].query.cols;
  const size_t sides = loss.sides.size();
  if (through) {
    float* query = scratch.take<float>(index_t(sides) * B * D);
    float* key = scratch.take<float>(index_t(sides) * B * D);
    op.added_query = query;
    op.added_key = key;
    const float* limit = limits(loss, scratch, stream);
    for (size_t n = 0; n < sides; ++n) {
      const LossSide& side = loss.sides[n];
      const auto add = [&](const Want& want, const float* most, int select, int lse, bool fresh) {
        const float* table = op.table + index_t(n) * kTable * B;
        batch_lse_backward({side.query, side.key, match_of(side, int(n), most, select, true), want,
                            table + lse * B, table + (lse + 2) * B, query + index_t(n) * B * D,
                            key + index_t(n) * B * D, op.upstream, op.step, loss.batch_at, fresh},
                           scratch, stream);
      };
      add(wanted(loss, 0), limit, loss.select, kLse, true);
      if (loss.rule.further != 0) add(wanted_further(loss, 0), nullptr, positive, kExtraLse, false);
    }
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
