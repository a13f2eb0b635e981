#include "rows.h"

#include <algorithm>
#include <string>

namespace sede_cuda {
namespace {

// A warp a row, or a block for a long one; `bytes` of shared memory for a fragment.
template <class Op>
void over_rows(const std::string& name, const Op& op, unsigned bytes, Stream stream) {
  const bool shared_block = op.length <= kWarpRow;
  const index_t rows_a_block = shared_block ? kEraseWarps : 1;
  const unsigned blocks = unsigned((op.rows + rows_a_block - 1) / rows_a_block);
  const unsigned shared = unsigned(rows_a_block) * unsigned(op.length) * bytes;
  launch(Image::erase, name + (shared_block ? "_warp" : "_block"), {blocks},
         shared_block ? 32 * kEraseWarps : kEraseThreads, shared, stream, &op);
}

}  // namespace

namespace {

template <class Op>
void write(const char* name, const Op& op, Stream stream) {
  const index_t written = op.ring.total - op.ring.skipped;
  if (written > 0) launch(Image::enqueue, name, {unsigned(written)}, 128, 0, stream, &op);
}

}  // namespace

void enqueue(const Enqueue& op, Stream stream) { write("write_keys", op, stream); }
void enqueue(const EnqueueSets& op, Stream stream) { write("write_sets", op, stream); }

void erase(const Erase& op, Stream stream) {
  over_rows("erase", op, sizeof(float) + 1, stream);
}

void erase_backward(const EraseBackward& op, Stream stream) {
  over_rows("erase_backward", op, 0, stream);
}

}  // namespace sede_cuda
