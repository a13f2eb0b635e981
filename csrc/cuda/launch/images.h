// What the build embeds; CMake writes the other half (images.cpp.in).
#pragma once

#include "driver.h"

namespace sede_cuda {

const void* image_data(Image image);
// Architectures of the embedded code, as SEDE_CUDA_ARCHS named them.
const char* image_architectures();

}  // namespace sede_cuda
