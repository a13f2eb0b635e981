#include "plan.h"

#include <unistd.h>

#include <algorithm>

namespace sede {
namespace {

// Cache sizes of this machine, with common values where it does not tell.
#ifdef _SC_LEVEL2_CACHE_SIZE
index_t cache_bytes(int name, index_t otherwise) {
  const long size = sysconf(name);
  return size > 0 ? index_t(size) : otherwise;
}
const index_t l1_bytes = cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 << 10);
const index_t l2_bytes = cache_bytes(_SC_LEVEL2_CACHE_SIZE, 512 << 10);
#else
const index_t l1_bytes = 32 << 10;
const index_t l2_bytes = 512 << 10;
#endif

constexpr index_t kQueryBlock = 128;
constexpr index_t kTasks = 64;                  // enough to fill many threads evenly
constexpr index_t kTaskFlops = 4 << 20;         // below this a task is not worth a thread
constexpr index_t kPartialBytes = index_t(4) << 20;
constexpr index_t kCandidateBytes = index_t(1) << 20;  // of the top-k, for a block of queries

// `block`: queries of a block; `most`: slices at most.
Plan cut(const Shape& shape, index_t block, index_t most) {
  const auto [queries, rows, dim, element, panel, in_place] = shape;
  Plan plan;
  const index_t row_bytes = std::max<index_t>(dim, 1) * element + 64;
  // Three eighths of L2 for the bank tile; queries, accumulators and the next tile stream through the
  // rest. Each tile loads and stores the accumulators once, so that few rows would cost much.
  plan.tiling.bank_rows = std::clamp<index_t>(l2_bytes / 8 * 3 / row_bytes / 8 * 8, 16, 128);
  // Columns that are not copied: long runs of memory, in half of L2, are read twice.
  if (in_place)
    plan.tiling.bank_rows = std::clamp<index_t>(l2_bytes / 2 / row_bytes / 32 * 32, 32, 512);
  // Half of L1 for the block of the packed query.
  plan.tiling.depth = std::max<index_t>(l1_bytes / 2 / (panel * element) / 16 * 16, 16);
  plan.query_block = std::min(block, round_up(queries, panel));
  plan.query_blocks = (queries + plan.query_block - 1) / plan.query_block;

  const index_t tiles = std::max<index_t>((rows + plan.tiling.bank_rows - 1) / plan.tiling.bank_rows, 1);
  const double flops = 2.0 * double(queries) * double(rows) * double(std::max<index_t>(dim, 1));
  index_t slices = kTasks / plan.query_blocks;
  slices = std::min(slices, index_t(flops / kTaskFlops / double(plan.query_blocks)));
  slices = std::min(slices, tiles / 2);
  plan.slices = std::max<index_t>(std::min(slices, most), 1);
  return plan;
}

}  // namespace

Plan make_plan(const Shape& shape, index_t slice_bytes) {
  const index_t most = slice_bytes > 0 ? 2 + kPartialBytes / slice_bytes : kTasks;
  return cut(shape, kQueryBlock, most);
}

Plan make_hardest_plan(const Shape& shape, index_t k, index_t key) {
  const index_t candidates = 2 * std::max<index_t>(k, 16) * key;  // bytes a query
  const index_t block =
      std::clamp(kCandidateBytes / candidates / shape.panel * shape.panel, shape.panel, kQueryBlock);
  const index_t most = std::min(shape.rows / (4 * std::max<index_t>(k, 1)),
                                2 + kPartialBytes / (shape.queries * std::max<index_t>(k, 1) * key));
  return cut(shape, block, most);
}

}  // namespace sede
