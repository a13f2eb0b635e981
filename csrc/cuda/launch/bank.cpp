#include "bank.h"

#include <algorithm>
#include <string>

#include "exact.h"
#include "hopper.h"

namespace sede_cuda {
namespace {

constexpr index_t kTile = 64;
constexpr unsigned kThreads = 128;
// Similarities of a chunk in memory, and the fewest columns of one.
index_t chunk_elements = index_t(1) << 22, smallest_chunk = 1024;
constexpr int kBlocksPerProcessor = 2, kFewestTiles = 4;
constexpr int kWidestFused = 512, kWidestTf32 = 256;
constexpr index_t kMostIndexed = (index_t(1) << 31) - 2 * kTile;  // a fused pass counts in int

unsigned grid_size(index_t size) { return unsigned(size); }

// What the product multiplies: a half type only where no input loses bits by it.
int operand_of(const Matrix& query, const Matrix& bank) {
  const bool half = query.dtype == bf16 || query.dtype == f16;
  return half && (bank.dtype == query.dtype || bank.dtype == i8) ? query.dtype : int(f32);
}

std::string suffix(int operand) {
  return operand == bf16 ? "_bf16" : operand == f16 ? "_f16" : "_f32";
}

index_t operand_bytes(int operand) { return operand == f32 ? 4 : 2; }

Matrix rows_from(const Matrix& m, index_t first, index_t count) {
  Matrix part = m;
  const index_t bytes = m.dtype == f32 ? 4 : m.dtype == i8 ? 1 : 2;
  part.data = static_cast<const char*>(m.data) + first * m.row_stride * bytes;
  part.rows = count;
  return part;
}

Matrix transposed(const Matrix& m) {
  return {m.data, m.cols, m.rows, m.col_stride, m.row_stride, m.dtype};
}

void finish(const BankSide& side, const Want& want, const Partial& from, Stream stream) {
  const Finish op{from, side.out, want, side.query.rows, side.query.cols,
                  side.row_scale != nullptr};
  launch(Image::finish, "finish_sums", {grid_size(op.rows)}, kThreads, 0, stream, &op);
}

bool vectors(const Matrix& m) {
  return m.col_stride == 1 && m.row_stride * (m.dtype == f32 ? 4 : 2) % 16 == 0 &&
         reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0;
}

// The limits of a side that has a margin, in memory.
const float* limits(const BankSide& side, const Number& margin, Scratch& scratch, Stream stream) {
  if (side.key.data == nullptr) return side.match.limit;
  const Limits op{side.query, side.key, margin, scratch.take<float>(side.query.rows)};
  if (!scratch.counting())
    launch(Image::info_nce, "info_nce_limits", {grid_size(side.query.rows)}, kThreads, 0, stream,
           &op);
  return op.limit;
}

bool any_further(const Passes& passes) {
  for (const BankSide& side : passes.sides)
    if (side.further) return true;
  return false;
}

// Passes that one launch can serve.
bool alike(const Passes& passes, const BankSide& a, const BankSide& b) {
  return a.query.dtype == b.query.dtype && a.bank.rows == b.bank.rows &&
         a.bank.row_stride == b.bank.row_stride && a.query.row_stride == b.query.row_stride &&
         (passes.of(a).accumulators > 0) == (passes.of(b).accumulators > 0);
}

// The fused pass reads rows of 16-bit elements, or of fp32 where tf32 is allowed, as vectors.
bool fusable(const Passes& passes) {
  for (const BankSide& side : passes.sides) {
    const bool half = side.query.dtype == bf16 || side.query.dtype == f16;
    if (!half && !(passes.tf32 && side.query.dtype == f32)) return false;
    if (side.bank.dtype != side.query.dtype || !alike(passes, side, passes.sides[0]))
      return false;
    if (!vectors(side.query) || !vectors(side.bank)) return false;
    if (side.key.data != nullptr && (!vectors(side.key) || side.key.dtype != side.query.dtype))
      return false;
    if (passes.of(side).exponents < 1) return false;
  }
  const Matrix& bank = passes.sides[0].bank;
  const int widest = bank.dtype == f32 ? kWidestTf32 : kWidestFused;
  return bank.cols > 0 && bank.cols % 8 == 0 && bank.cols <= widest &&
         bank.rows < kMostIndexed && passes.sides[0].query.rows < kMostIndexed;
}

std::vector<Partial> fused_pass(const Passes& passes, Scratch& scratch, Stream stream) {
  const std::vector<BankSide>& sides = passes.sides;
  const bool one_sum = passes.want.accumulators <= 1 && !any_further(passes);
  if (one_sum && hopper_serves(sides, passes.want)) return hopper_pass(passes, scratch, stream);
  const index_t B = sides[0].query.rows, K = sides[0].bank.rows, D = sides[0].bank.cols;
  const int padded = D <= 64 ? 64 : D <= 128 ? 128 : D <= 256 ? 256 : 512;
  const bool sums_rows = passes.of(sides[0]).accumulators > 0;
  bool full = sides[0].query.dtype == f32;  // there is no other kernel in tf32
  int exponents = 1, planes = 0;
  for (const BankSide& side : sides) {
    const Want& want = passes.of(side);
    full = full || want.moments || want.hardest || want.exponents > 2 || side.limited();
    exponents = std::max(exponents, want.exponents);
    planes += std::max(1, want.accumulators);
  }
  const int bytes = sides[0].query.dtype == f32 ? 4 : 2;
  const int columns = fused_columns(padded, full ? kExponents : exponents, sums_rows, bytes);
  const index_t row_blocks = blocks(B, kFusedRows), tiles = blocks(K, columns);
  const index_t wanted = index_t(multiprocessors()) * kBlocksPerProcessor;
  const Parts parts = parts_of(tiles, blocks(wanted, row_blocks * planes), kFewestTiles);

  const char* kind = !sums_rows ? "_lse" : full ? "_full" : exponents == 2 ? "_two" : "_one";
  Fused op{};
  op.want = passes.want;
  op.further = passes.further;
  op.margin = passes.margin;
  op.rows = B;
  op.bank_rows = K;
  op.dim = int(D);
  op.query_stride = sides[0].query.row_stride;
  op.bank_stride = sides[0].bank.row_stride;
  op.tiles_per_part = parts.tiles;
  op.fixed = has_fixed_peak(sides[0], passes.want);
  std::vector<Partial> found;
  int z = 0;
  for (const BankSide& side : sides) {
    found.push_back(partial(scratch, parts.count, B, D, passes.of(side)));
    for (int plane = 0; plane < std::max(1, passes.of(side).accumulators); ++plane)
      op.side[z++] = {side.query.data,     side.bank.data, side.match,    found.back(),
                      plane,               side.further,   side.key.data, side.key.row_stride,
                      side.limited()};
  }
  if (scratch.counting()) return found;
  const unsigned shared = unsigned((kFusedRows + 2 * columns) * padded * bytes + 2 * columns * 8);
  const std::string operand = bytes == 4 ? "_tf32" : suffix(sides[0].query.dtype);
  const std::string name = operand + kind + "_" + std::to_string(padded);
  launch(bytes == 4 ? Image::fused_tf32 : Image::fused, "fused" + name,
         {grid_size(row_blocks), unsigned(parts.count), unsigned(planes)},
         unsigned(32 * kFusedWarps * fused_groups(padded, sums_rows)), shared, stream, &op);
  return found;
}

// Similarities of a chunk go to memory; steps make of them what is wanted.
index_t chunk_columns(index_t rows, index_t bank_rows) {
  const index_t fit = chunk_elements / std::max<index_t>(rows, 1) / kTile * kTile;
  return std::min(bank_rows, std::max(smallest_chunk, fit));
}

void similarities(const Matrix& query, const Matrix& chunk, const float* scale, float* s,
                  int operand, Stream stream) {
  const Similarities op{query, chunk, scale, s};
  const Grid grid{grid_size(blocks(chunk.rows, kTile)), grid_size(blocks(query.rows, kTile))};
  launch(Image::chunk, "similarities" + suffix(operand), grid, kThreads, 0, stream, &op);
}

void accumulate(const std::vector<Accumulate>& all, int operand, Stream stream) {
  Accumulations op{};
  index_t rows = 0, cols = 0;
  for (size_t n = 0; n < all.size(); ++n) {
    op.of[n] = all[n];
    rows = std::max(rows, all[n].weights.rows);
    cols = std::max(cols, all[n].rows.rows);
  }
  if (rows == 0 || cols == 0) return;  // nothing is summed, or rows of no columns
  const Grid grid{grid_size(blocks(cols, kTile)), grid_size(blocks(rows, kTile)),
                  unsigned(all.size())};
  launch(Image::chunk, "accumulate" + suffix(operand), grid, kThreads, 0, stream, &op);
}

Partial chunked_pass(const Passes& passes, const BankSide& side, Scratch& scratch,
                     Stream stream) {
  const Want& want = passes.of(side);
  const index_t B = side.query.rows, K = side.bank.rows, D = side.query.cols;
  const index_t C = chunk_columns(B, K), A = want.accumulators;
  const int operand = operand_of(side.query, side.bank);
  const Partial sums = partial(scratch, 1, B, D, want);
  const index_t kept = scratch.used();
  Match match = side.match;
  match.limit = limits(side, passes.margin, scratch, stream);
  float* s = scratch.take<float>(B * C);
  char* weights = scratch.take<char>(A * B * C * operand_bytes(operand));
  float* shrink = scratch.take<float>(A * B);
  scratch.release(kept);
  if (scratch.counting()) return sums;
  for (index_t first = 0; first < K; first += C) {
    const index_t cols = std::min(C, K - first);
    const Matrix chunk = rows_from(side.bank, first, cols);
    const float* scale = side.row_scale == nullptr ? nullptr : side.row_scale + first;
    similarities(side.query, chunk, scale, s, operand, stream);
    const Weigh weigh{s, scale, B, cols, K, first, match, want, sums, shrink, weights, first == 0};
    launch(Image::chunk, "weigh" + suffix(operand), {grid_size(B)}, kThreads, 0, stream, &weigh);
    const bool ids = match.bank_ids != nullptr && !match.in_batch;
    std::vector<Accumulate> rows;
    for (index_t a = 0; a < A; ++a) {
      const Matrix weight{weights + a * B * cols * operand_bytes(operand), B, cols, cols, 1,
                          operand};
      rows.push_back({weight, transposed(chunk), ids ? match.bank_ids + first : nullptr,
                      shrink + a * B, sums.acc + a * B * D, first == 0});
    }
    accumulate(rows, operand, stream);
  }
  return sums;
}

// Passes that one launch may serve: those from `first` on that are not done and fit to it.
std::vector<size_t> together(const Passes& passes, const std::vector<bool>& done, size_t first,
                             bool (*fits)(const Passes&, const BankSide&, const BankSide&)) {
  std::vector<size_t> members;
  for (size_t j = first; j < passes.sides.size(); ++j)
    if (!done[j] && fits(passes, passes.sides[first], passes.sides[j])) members.push_back(j);
  return members;
}

Passes only(const Passes& passes, const std::vector<size_t>& members) {
  Passes group{{}, passes.want, passes.further, passes.margin, passes.tf32};
  for (const size_t member : members) group.sides.push_back(passes.sides[member]);
  return group;
}

}  // namespace

Parts parts_of(index_t tiles, index_t split, index_t fewest) {
  const index_t most = std::max<index_t>(1, std::min<index_t>(kMostParts, tiles / fewest));
  const index_t part = blocks(tiles, std::min(split, most));
  return {int(part), int(blocks(tiles, part))};
}

Partial partial(Scratch& scratch, int parts, index_t rows, index_t dim, const Want& want) {
  const index_t E = want.exponents, A = want.accumulators;
  Partial sums{};
  sums.parts = parts;
  sums.peak = scratch.take<float>(parts * rows);
  sums.total = scratch.take<float>(parts * E * rows);
  sums.mass = scratch.take<float>(parts * A * rows);
  if (want.moments) sums.moment = scratch.take<float>(parts * E * rows);
  sums.acc = scratch.take<float>(parts * A * rows * dim);
  sums.count = scratch.take<index_t>(parts * rows);
  if (want.hardest) sums.index = scratch.take<index_t>(parts * rows);
  return sums;
}

// Half weights of e^{-2 c} would be 0.
bool has_fixed_peak(const BankSide& side, const Want& want) {
  return want.unit_length && side.query.dtype == bf16;
}

void set_chunk(index_t elements, index_t columns) {
  chunk_elements = elements;
  smallest_chunk = columns;
}

// Tensor cores where they serve; else in fp32 in one launch too, or in chunks.
std::vector<Partial> bank_pass(const Passes& passes, Scratch& scratch, Stream stream) {
  std::vector<Partial> found(passes.sides.size());
  std::vector<bool> done(passes.sides.size());
  for (size_t i = 0; i < found.size(); ++i) {
    if (done[i]) continue;
    std::vector<size_t> members = together(passes, done, i, alike);
    std::vector<Partial> parts;
    if (fusable(only(passes, members))) {
      parts = fused_pass(only(passes, members), scratch, stream);
    } else if (members = together(passes, done, i, same_shape);
               exact_serves(only(passes, members))) {
      parts = exact_pass(only(passes, members), scratch, stream);
    } else {
      members = {i};
      parts = {chunked_pass(passes, passes.sides[i], scratch, stream)};
    }
    for (size_t n = 0; n < members.size(); ++n) {
      found[members[n]] = parts[n];
      done[members[n]] = true;
    }
  }
  return found;
}

index_t bank_lse(const std::vector<BankSide>& sides, const Want& want, bool tf32, void* memory,
                 Stream stream) {
  Scratch scratch(memory);
  const std::vector<Partial> found = bank_pass({sides, want, {}, {}, tf32}, scratch, stream);
  if (!scratch.counting())
    for (size_t i = 0; i < sides.size(); ++i) finish(sides[i], want, found[i], stream);
  return scratch.most();
}

void batch_lse_backward(const BatchGradient& op, Scratch& scratch, Stream stream) {
  Gradients step = op.of;
  const index_t B = step.rows, C = chunk_columns(B, B), kept = scratch.used();
  int operand = operand_of(step.side[0].query, step.side[0].key);
  for (int n = 1; n < op.sides; ++n)
    if (operand_of(step.side[n].query, step.side[n].key) != operand) operand = f32;
  for (int n = 0; n < op.sides; ++n)
    step.side[n].weights = scratch.take<char>(B * C * operand_bytes(operand));
  scratch.release(kept);
  if (scratch.counting()) return;
  for (step.first = 0; step.first < B; step.first += C) {
    const index_t cols = std::min(C, B - step.first);
    std::vector<Accumulate> rows;
    for (int n = 0; n < op.sides; ++n) {
      const GradientSide& side = op.of.side[n];
      const Matrix chunk = step.side[n].key = rows_from(side.key, step.first, cols);
      const Matrix weight{step.side[n].weights, B, cols, cols, 1, operand};
      rows.push_back({weight, transposed(chunk), nullptr, nullptr, op.query_grad[n],
                      step.first == 0});
      rows.push_back({transposed(weight), transposed(side.query), nullptr, nullptr,
                      op.key_grad[n] + step.first * side.key.cols, true});
    }
    const Grid grid{grid_size(blocks(cols, kTile)), grid_size(blocks(B, kTile)),
                    unsigned(op.sides)};
    launch(Image::chunk, "gradients" + suffix(operand), grid, kThreads, 0, stream, &step);
    accumulate(rows, operand, stream);
  }
}

index_t hardest(const Matrix& query, const Matrix& bank, const float* row_scale,
                const Match& match, int k, float* values, index_t* indices, void* memory,
                Stream stream) {
  const index_t B = query.rows, K = bank.rows, C = chunk_columns(B, K);
  const int operand = operand_of(query, bank);
  Scratch scratch(memory);
  float* s = scratch.take<float>(B * C);
  if (memory == nullptr) return scratch.used();
  for (index_t first = 0; first < K; first += C) {
    const index_t cols = std::min(C, K - first);
    const float* scale = row_scale == nullptr ? nullptr : row_scale + first;
    similarities(query, rows_from(bank, first, cols), scale, s, operand, stream);
    const Top op{s, B, cols, K, first, match, k, values, indices, first == 0};
    launch(Image::hardest, "merge_top", {grid_size(B)}, kThreads, 0, stream, &op);
  }
  return scratch.used();
}

}  // namespace sede_cuda
