#include "exact.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "../exact_args.h"

namespace sede_cuda {
namespace {

constexpr int kBlocksPerProcessor = 2, kFewestTiles = 4;
constexpr index_t kMostIndexed = (index_t(1) << 31) - 256;  // the pass counts in int

bool allowed = true;

// Whether four neighbouring columns can be read at once.
bool vectors(const Matrix& m) {
  const index_t bytes = m.dtype == f32 ? 4 : m.dtype == i8 ? 1 : 2;
  return m.col_stride == 1 && m.row_stride % 4 == 0 &&
         reinterpret_cast<std::uintptr_t>(m.data) % (4 * bytes) == 0;
}

}  // namespace

void set_exact(bool value) { allowed = value; }

bool same_shape(const Passes& passes, const BankSide& a, const BankSide& b) {
  return a.query.rows == b.query.rows && a.bank.rows == b.bank.rows &&
         a.bank.cols == b.bank.cols &&
         (passes.of(a).accumulators > 0) == (passes.of(b).accumulators > 0);
}

bool exact_serves(const Passes& passes) {
  for (const BankSide& side : passes.sides)
    if (passes.of(side).exponents < 1) return false;
  const BankSide& first = passes.sides[0];
  return allowed && first.bank.cols > 0 && first.bank.cols <= kExactWidest &&
         first.bank.rows < kMostIndexed && first.query.rows < kMostIndexed;
}

std::vector<Partial> exact_pass(const Passes& passes, Scratch& scratch, Stream stream) {
  const std::vector<BankSide>& sides = passes.sides;
  const index_t B = sides[0].query.rows, K = sides[0].bank.rows, D = sides[0].bank.cols;
  const int padded = D <= 64 ? 64 : D <= 128 ? 128 : D <= 256 ? 256 : kExactWidest;
  const bool sums_rows = passes.of(sides[0]).accumulators > 0;
  int planes = 0;
  for (const BankSide& side : sides) planes += std::max(1, passes.of(side).accumulators);
  const index_t row_blocks = blocks(B, 16 * exact_warps(padded));
  const index_t tiles = blocks(K, exact_columns(padded));
  const index_t wanted = index_t(multiprocessors()) * kBlocksPerProcessor;
  const Parts parts = parts_of(tiles, blocks(wanted, row_blocks * planes), kFewestTiles);

  ExactPass op{};
  op.want = passes.want;
  op.further = passes.further;
  op.margin = passes.margin;
  op.rows = B;
  op.bank_rows = K;
  op.dim = int(D);
  op.tiles_per_part = parts.tiles;
  std::vector<Partial> found;
  int z = 0;
  for (const BankSide& side : sides) {
    found.push_back(partial(scratch, parts.count, B, D, passes.of(side)));
    for (int plane = 0; plane < std::max(1, passes.of(side).accumulators); ++plane)
      op.side[z++] = {side.query,     side.bank,          side.key, side.row_scale,
                      side.match,     found.back(),       plane,    side.further,
                      side.limited(), vectors(side.query), vectors(side.bank)};
  }
  if (scratch.counting()) return found;
  const std::string name = std::string(sums_rows ? "full_" : "lse_") + std::to_string(padded);
  launch(Image::fused_exact, "fused_exact_" + name,
         {unsigned(row_blocks), unsigned(parts.count), unsigned(planes)},
         unsigned(exact_threads(padded, sums_rows)), unsigned(exact_shared(padded, sums_rows)),
         stream, &op);
  return found;
}

}  // namespace sede_cuda
