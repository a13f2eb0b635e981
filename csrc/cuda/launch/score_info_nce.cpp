#include "score_info_nce.h"

#include <algorithm>

namespace sede_cuda {

constexpr unsigned kScoreThreads = 128;

void score_info_nce(const ScoreForward& op, Stream stream) {
  launch(Image::score_info_nce, "score_forward", {unsigned(op.given.scores.rows)}, kScoreThreads, 0,
         stream, &op);
}

void score_info_nce_backward(const ScoreBackward& op, Stream stream) {
  const index_t columns = op.scores == nullptr ? 0 : op.given.scores.cols;
  const index_t blocks = std::max<index_t>(1, (columns + kScoreColumns - 1) / kScoreColumns);
  const bool scalar = op.temperature != nullptr || op.hardness != nullptr;
  launch(Image::score_info_nce, "score_backward",
         {unsigned(op.given.scores.rows) + scalar, unsigned(blocks)}, kScoreThreads, 0, stream,
         &op);
}

}  // namespace sede_cuda
