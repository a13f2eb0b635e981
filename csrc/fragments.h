// Ops on sets of fragments (regions, words): erasing, region-word similarity.
#pragma once

#include "kernels/erase_api.h"

namespace sede {

void erase(const EraseForward& op);
void erase_backward(const EraseBackward& op);

}  // namespace sede
