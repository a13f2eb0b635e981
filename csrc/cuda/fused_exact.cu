// The variants of the fused pass in fp32. Names: what is found, and columns.
//   full: up to three exponents, limits, moments, the hardest row, and a weighted sum of rows
//   lse: as full, without a weighted sum
#include "exact.cuh"

using namespace sede_cuda;

#define SEDE_EXACT(name, D, ACC)                                         \
  extern "C" __global__ void __launch_bounds__(exact_threads(D, ACC), 1) \
      fused_exact_##name##_##D(const __grid_constant__ ExactPass op) {   \
    extern __shared__ __align__(128) unsigned char memory[];             \
    ExactKernel<D, ACC>(op, memory).run();                               \
  }
#define SEDE_EXACT_OF(D)    \
  SEDE_EXACT(full, D, true) \
  SEDE_EXACT(lse, D, false)

SEDE_EXACT_OF(64)
SEDE_EXACT_OF(128)
SEDE_EXACT_OF(256)
SEDE_EXACT_OF(512)
