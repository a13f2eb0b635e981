// The table of this instruction set, and the register-only loop that measures its FMA peak.
#include "table.h"

#include "simd.h"

namespace sede {
namespace SEDE_ISA {

namespace {

// Register class of a vector in inline assembly.
#if defined(__AVX512F__)
#define SEDE_REGISTER "+v"
#elif defined(__x86_64__)
#define SEDE_REGISTER "+x"
#elif defined(__aarch64__)
#define SEDE_REGISTER "+w"
#else
#define SEDE_REGISTER "+m"
#endif

constexpr int kChains = 2 * kTileRows;

// Independent chains of fused multiply-adds that never leave the registers.
__attribute__((noinline)) double fma_loop(index_t rounds) {
  VecF sum[kChains];
#pragma GCC unroll 16
  for (int n = 0; n < kChains; ++n) sum[n] = splat<VecF>(float(n));
  VecF factor = splat<VecF>(0.999f), term = splat<VecF>(0.001f);
  for (index_t k = 0; k < rounds; ++k) {
#pragma GCC unroll 16
    for (int n = 0; n < kChains; ++n) sum[n] = sum[n] * factor + term;
#pragma GCC unroll 16
    for (int n = 0; n < kChains; ++n) __asm__ volatile("" : SEDE_REGISTER(sum[n]));
  }
  VecF total = sum[0];
#pragma GCC unroll 16
  for (int n = 1; n < kChains; ++n) total += sum[n];
  float lanes[Simd<float>::width];
  store(lanes, total);
  return double(lanes[0]);
}

}  // namespace

extern constexpr Kernels kernels = {SEDE_STRING(SEDE_ISA), &bank_f32, &bank_f64, &bank_bf16,
                                    &hardest_f32, &hardest_f64, &hardest_bf16, &batch_f32, &batch_f64,
                                    &enqueue_ops, fma_loop, 2 * kChains * Simd<float>::width,
                                    &erase_ops, &cross_attention_ops, &cross_attention_pairs_ops,
                                    &nearest_ops, &info_nce_f32, &info_nce_f64, &score_ops, &ranks_f32, &ranks_f64};

}  // namespace SEDE_ISA
}  // namespace sede
