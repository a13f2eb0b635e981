// The CUDA driver, opened when it is first needed: nothing of CUDA is linked.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

namespace sede_cuda {

// What the driver said, or why there is none.
struct DriverError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

using Stream = void*;

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

// Fatbins or PTX texts that the build put into the module, one a source file.
enum class Image { chunk, finish, fused, hardest, enqueue, erase, info_nce, score_info_nce, count };

// Why no kernel can run on the current device, or an empty text.
std::string unavailable_reason();

// Multiprocessors of the current device.
int multiprocessors();

// Runs kernel `name` of an image with one struct as its argument.
void launch(Image image, const std::string& name, Grid grid, unsigned threads, unsigned shared,
            Stream stream, const void* argument);

}  // namespace sede_cuda
