// The CUDA driver, opened when it is first needed: nothing of CUDA is linked.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

#include "../hopper_args.h"

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
enum class Image {
  chunk,
  finish,
  fused,
  fused_tf32,
  fused_exact,
  hopper,
  hardest,
  enqueue,
  erase,
  info_nce,
  score_info_nce,
  count
};

// Why no kernel can run on the current device, or an empty text.
std::string unavailable_reason();

// Whether the build compiled an image for the GPUs that it is for.
bool has_code(Image image);

// Multiprocessors of the current device.
int multiprocessors();
// Its compute capability, as 90.
int capability();

// A matrix of 16-bit elements for the copy engine, in boxes that are swizzled by 128 bytes. Rows of
// `stride` elements.
TensorMap tensor_map(const void* data, bool bf16, index_t columns, index_t rows, index_t stride,
                     unsigned box_columns, unsigned box_rows);

// Runs kernel `name` of an image with one struct as its argument.
void launch(Image image, const std::string& name, Grid grid, unsigned threads, unsigned shared,
            Stream stream, const void* argument);

}  // namespace sede_cuda
