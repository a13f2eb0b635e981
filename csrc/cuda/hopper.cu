// The variants of the pass for compute capability 9.0. Names: operand, columns, what is found.
//   one, two: log-sum-exps at one or two exponents, the rows' weighted sum at the first
//   full: up to three exponents, moments and the hardest row besides; at most 128 columns
//   lse, stats: as two and full, without a weighted sum
#include "hopper.cuh"

using namespace sede_cuda;

#define SEDE_HOPPER(name, T, D, E, FULL, ACC)                          \
  extern "C" __global__ void __launch_bounds__(kHopperThreads, 1)      \
      hopper_##name##_##D(const __grid_constant__ HopperPass pass) {   \
    hopper<T, D, E, FULL, ACC>(pass);                                  \
  }
#define SEDE_HOPPER_OF(T, name, D)               \
  SEDE_HOPPER(name##_one, T, D, 1, false, true)  \
  SEDE_HOPPER(name##_two, T, D, 2, false, true)  \
  SEDE_HOPPER(name##_lse, T, D, 2, false, false) \
  SEDE_HOPPER(name##_stats, T, D, 3, true, false)

SEDE_HOPPER_OF(Bf16, bf16, 64)
SEDE_HOPPER_OF(Bf16, bf16, 128)
SEDE_HOPPER_OF(Bf16, bf16, 256)
SEDE_HOPPER_OF(F16, f16, 64)
SEDE_HOPPER_OF(F16, f16, 128)
SEDE_HOPPER_OF(F16, f16, 256)
// With 256 columns O leaves no registers for it.
SEDE_HOPPER(bf16_full, Bf16, 64, 3, true, true)
SEDE_HOPPER(bf16_full, Bf16, 128, 3, true, true)
SEDE_HOPPER(f16_full, F16, 64, 3, true, true)
SEDE_HOPPER(f16_full, F16, 128, 3, true, true)
