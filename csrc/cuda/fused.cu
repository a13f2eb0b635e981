// The variants of the fused pass. Names: operand, columns, and what is found.
//   one, two: log-sum-exps at one or two exponents, the rows' weighted sum at the first
//   full: up to three exponents, limits, moments and the hardest row besides
//   lse: as full, without a weighted sum
#include "fused.cuh"

using namespace sede_cuda;

#define SEDE_FUSED(name, T, D, WARPS, E, FULL, ACC)              \
  extern "C" __global__ void                                     \
      __launch_bounds__(32 * WARPS * fused_groups(D, ACC))       \
          fused_##name##_##D(const __grid_constant__ Fused op) { \
    fused<T, D, WARPS, E, FULL, ACC>(op);                        \
  }
#define SEDE_FUSED_OF(T, name, D, WARPS)               \
  SEDE_FUSED(name##_one, T, D, WARPS, 1, false, true)  \
  SEDE_FUSED(name##_two, T, D, WARPS, 2, false, true)  \
  SEDE_FUSED(name##_full, T, D, WARPS, 3, true, true)  \
  SEDE_FUSED(name##_lse, T, D, WARPS, 3, true, false)

SEDE_FUSED_OF(Bf16, bf16, 64, 4)
SEDE_FUSED_OF(Bf16, bf16, 128, 4)
SEDE_FUSED_OF(Bf16, bf16, 256, 4)
SEDE_FUSED_OF(Bf16, bf16, 512, 4)
SEDE_FUSED_OF(F16, f16, 64, 4)
SEDE_FUSED_OF(F16, f16, 128, 4)
SEDE_FUSED_OF(F16, f16, 256, 4)
SEDE_FUSED_OF(F16, f16, 512, 4)
