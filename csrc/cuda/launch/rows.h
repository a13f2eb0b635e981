// Ring writes and erasing: one launch over rows each.
#pragma once

#include "../args.h"
#include "driver.h"

namespace sede_cuda {

void enqueue(const Enqueue& op, Stream stream);
void enqueue(const EnqueueSets& op, Stream stream);

void erase(const Erase& op, Stream stream);
void erase_backward(const EraseBackward& op, Stream stream);

}  // namespace sede_cuda
