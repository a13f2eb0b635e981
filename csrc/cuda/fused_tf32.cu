// The variants of the fused pass for rows of fp32, multiplied in tf32. Names as in fused.cu. Those
// that find less would spill on compute capability 10.0.
#include "fused.cuh"

using namespace sede_cuda;

#define SEDE_FUSED(name, D, E, FULL, ACC)                                                   \
  extern "C" __global__ void __launch_bounds__(32 * kFusedWarps * fused_groups(D, ACC), 1)  \
      fused_tf32_##name##_##D(const __grid_constant__ Fused op) {                           \
    fused<float, D, kFusedWarps, E, FULL, ACC>(op);                                         \
  }
#define SEDE_FUSED_OF(D)            \
  SEDE_FUSED(full, D, 3, true, true)  \
  SEDE_FUSED(lse, D, 3, true, false)

SEDE_FUSED_OF(64)
SEDE_FUSED_OF(128)
SEDE_FUSED_OF(256)
