// Ring writes and erasing: one launch over rows each.
#pragma once

#include "../args.h"
#include "driver.h"

namespace sede_cuda {

// The last rows of the ring's size of `total` keys; then the pointer moves on by all of them.
void enqueue(const Enqueue& op, index_t* ptr, index_t total, Stream stream);

void erase(const Erase& op, Stream stream);
void erase_backward(const EraseBackward& op, Stream stream);

}  // namespace sede_cuda
