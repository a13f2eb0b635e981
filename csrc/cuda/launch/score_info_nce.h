// The weighted InfoNCE of given scores: one launch each way.
#pragma once

#include "../score_args.h"
#include "driver.h"

namespace sede_cuda {

void score_info_nce(const ScoreForward& op, Stream stream);
void score_info_nce_backward(const ScoreBackward& op, Stream stream);

}  // namespace sede_cuda
