// What the host hands to the fused pass in fp32, and the sizes that both sides reckon with.
#pragma once

#include "args.h"

namespace sede_cuda {

// One of the passes of a launch: rows of any dtype and stride.
struct ExactSide {
  Matrix query, bank;
  Matrix key;              // the limits are s+ + margin of these; or of no address
  const float* row_scale;  // of an int8 bank, or null
  Match match;
  Partial out;
  int plane;    // the exponent whose weights sum the rows; 0 also writes all other sums
  int further;  // wants ExactPass::further
  int limited;  // by keys or by match.limit
  // Whether four neighbouring columns can be read at once.
  int query_vectors, bank_vectors;
};

struct ExactPass {
  ExactSide side[kFusedSides];
  Want want, further;
  Number margin;
  index_t rows, bank_rows;
  int dim;
  int tiles_per_part;
};

// Columns that a kernel is made for.
constexpr int kExactWidest = 512;
// Warps that have other queries, 16 each.
constexpr int exact_warps(int dim) { return dim > 256 ? 2 : 4; }
// Rows of the bank in a tile.
constexpr int exact_columns(int dim) { return dim > 128 ? 16 : 32; }
// Warps that have the same queries and other columns of O.
constexpr int exact_groups(int dim, bool sums_rows) { return dim > 256 && sums_rows ? 2 : 1; }
constexpr int exact_threads(int dim, bool sums_rows) {
  return 32 * exact_warps(dim) * exact_groups(dim, sums_rows);
}
// Weights of a row of a tile: those of 16 queries, apart so that four such rows lie in other banks.
constexpr int kExactWeights = 20;
// Ids of a tile, its scales, queries, a tile, the weights of each warp's queries.
constexpr int exact_shared(int dim, bool sums_rows) {
  const int rows = 16 * exact_warps(dim), columns = exact_columns(dim);
  const int weights = sums_rows ? exact_warps(dim) * columns * kExactWeights : 0;
  return columns * 8 + ((rows + columns) * dim + weights + columns) * 4;
}
// As much as a block has on every GPU, the exponents' place in front of it included.
static_assert(exact_shared(64, true) + 128 <= 101376 && exact_shared(128, true) + 128 <= 101376 &&
                  exact_shared(256, true) + 128 <= 101376 &&
                  exact_shared(512, true) + 128 <= 101376,
              "99 KB");

}  // namespace sede_cuda
