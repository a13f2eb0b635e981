#include "hopper.h"

#include <algorithm>
#include <string>

#include "../hopper_args.h"

namespace sede_cuda {
namespace {

constexpr int kCapability = 90, kWidest = 256, kWidestFull = 128, kFewestTiles = 8;

bool allowed = true;

// What a tensor map can say: rows that do not overlap, as vectors of 16 bytes.
bool mapped(const Matrix& m) {
  return m.col_stride == 1 && m.row_stride % 8 == 0 && m.row_stride >= m.cols &&
         reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0;
}

bool serves(const BankSide& side) {
  const bool half = side.query.dtype == bf16 || side.query.dtype == f16;
  return half && side.bank.dtype == side.query.dtype && mapped(side.query) &&
         mapped(side.bank) && side.match.select != positive;
}

TensorMap map_of(const Matrix& m) {
  return tensor_map(m.data, m.dtype == bf16, m.cols, m.rows, m.row_stride, kHopperBox,
                    kHopperRows);
}

// Whether a call asks for more than two log-sum-exps and one weighted sum.
bool full(const Want& want) { return want.moments || want.hardest || want.exponents > 2; }

}  // namespace

void set_hopper(bool value) { allowed = value; }

bool hopper_serves(const std::vector<BankSide>& sides, const Want& want) {
  const Matrix& bank = sides[0].bank;
  const index_t widest = full(want) && want.accumulators > 0 ? kWidestFull : kWidest;
  return allowed && bank.cols <= widest && std::all_of(sides.begin(), sides.end(), serves) &&
         has_code(Image::hopper) && capability() == kCapability;
}

std::vector<Partial> hopper_pass(const Passes& passes, Scratch& scratch, Stream stream) {
  const std::vector<BankSide>& sides = passes.sides;
  const Want& want = passes.want;
  const index_t B = sides[0].query.rows, K = sides[0].bank.rows, D = sides[0].bank.cols;
  const int padded = D <= 64 ? 64 : D <= 128 ? 128 : 256;
  const index_t row_blocks = blocks(B, kHopperQueries), tiles = blocks(K, kHopperRows);
  const index_t split = blocks(multiprocessors(), row_blocks * index_t(sides.size()));
  const Parts parts = parts_of(tiles, split, kFewestTiles);

  HopperPass op{};
  op.pass.want = want;
  op.pass.margin = passes.margin;
  op.pass.rows = B;
  op.pass.bank_rows = K;
  op.pass.query_stride = sides[0].query.row_stride;
  op.pass.dim = int(D);
  op.pass.tiles_per_part = parts.tiles;
  op.pass.fixed = has_fixed_peak(sides[0], want);
  std::vector<Partial> found;
  for (size_t i = 0; i < sides.size(); ++i) {
    const BankSide& side = sides[i];
    found.push_back(partial(scratch, parts.count, B, D, want));
    op.pass.side[i] = {side.query.data, nullptr, side.match, found.back(), 0, 0,
                       side.key.data, side.key.row_stride, side.limited()};
  }
  if (scratch.counting()) return found;
  for (size_t i = 0; i < sides.size(); ++i) {
    op.query[i] = map_of(sides[i].query);
    op.bank[i] = map_of(sides[i].bank);
  }
  const char* with_rows = full(want) ? "_full_" : want.exponents == 2 ? "_two_" : "_one_";
  const char* without = full(want) ? "_stats_" : "_lse_";
  const char* kind = want.accumulators > 0 ? with_rows : without;
  const std::string name = std::string(sides[0].query.dtype == bf16 ? "bf16" : "f16") + kind;
  launch(Image::hopper, "hopper_" + name + std::to_string(padded),
         {unsigned(row_blocks), unsigned(parts.count), unsigned(sides.size())}, kHopperThreads,
         hopper_shared(padded), stream, &op);
  return found;
}

}  // namespace sede_cuda
