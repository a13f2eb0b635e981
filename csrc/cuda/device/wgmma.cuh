// Products of a warpgroup: 64 rows by four warps, operands in swizzled shared memory. sm_90a only.
//
// Accumulator i of a thread lies in row lane / 4 + 8 (i / 2 % 2) of its warp's 16 and in column
// i / 4 * 8 + lane % 4 * 2 + i % 2. Packed in pairs it is the left operand of the next product.
#pragma once

#include "numbers.cuh"
#include "tensor_copy.cuh"

namespace sede_cuda {

// Registers that an unfinished product reads or writes: the compiler moves nothing across this.
template <int N>
__device__ __forceinline__ void hold(float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <int N>
__device__ __forceinline__ void hold(unsigned (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+r"(x[i])::"memory");
}
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most PENDING groups of products are under way; x is then there.
template <int PENDING, int N>
__device__ __forceinline__ void wgmma_wait(float (&x)[N]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
  hold(x);
}

// An operand in shared memory, swizzled by 128 bytes: the low word holds its address and a distance
// in units of 16 bytes, the high word another distance, that of 8 rows. 256 KB fit into 14 bits, so
// a step along the operand is added to the low word.
__device__ __forceinline__ unsigned long long matrix_at(unsigned low) {
  constexpr unsigned kHigh = 8 * kBoxRow / 16 | 1u << 30;
  return (unsigned long long)kHigh << 32 | low;
}
// A tile for sums over its columns. The distance has no meaning.
__device__ __forceinline__ unsigned by_columns(unsigned tile) { return tile / 16 | 1u << 16; }
// A tile for sums over its rows; the distance is that of the next box.
__device__ __forceinline__ unsigned by_rows(unsigned tile) {
  return tile / 16 | unsigned(kBoxBytes / 16) << 16;
}
// 16 columns from column 16 k on.
__device__ __forceinline__ unsigned long long columns_of(unsigned low, int k) {
  return matrix_at(low + unsigned(k / 4 * kBoxBytes + k % 4 * 32) / 16);
}
// 16 rows from row 16 k on.
__device__ __forceinline__ unsigned long long rows_of(unsigned low, int k) {
  return matrix_at(low + unsigned(k * 16 * kBoxRow) / 16);
}

// Operand lists of PTX: SEDE_TEN(1) is "%10,%11,...,%19,".
#define SEDE_TEN(t)                                                                            \
  "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9,"
#define SEDE_32 SEDE_TEN() SEDE_TEN(1) SEDE_TEN(2) "%30,%31"
#define SEDE_64 \
  SEDE_TEN() SEDE_TEN(1) SEDE_TEN(2) SEDE_TEN(3) SEDE_TEN(4) SEDE_TEN(5) "%60,%61,%62,%63"
#define SEDE_128                                                                              \
  SEDE_TEN() SEDE_TEN(1) SEDE_TEN(2) SEDE_TEN(3) SEDE_TEN(4) SEDE_TEN(5) SEDE_TEN(6) SEDE_TEN(7) \
  SEDE_TEN(8) SEDE_TEN(9) SEDE_TEN(10) SEDE_TEN(11) "%120,%121,%122,%123,%124,%125,%126,%127"
#define SEDE_8_OF(x, i)                                                                    \
  "+f"(x[i]), "+f"(x[i + 1]), "+f"(x[i + 2]), "+f"(x[i + 3]), "+f"(x[i + 4]), "+f"(x[i + 5]), \
      "+f"(x[i + 6]), "+f"(x[i + 7])
#define SEDE_32_OF(x, i) \
  SEDE_8_OF(x, i), SEDE_8_OF(x, i + 8), SEDE_8_OF(x, i + 16), SEDE_8_OF(x, i + 24)

template <class T>
struct Wgmma;

#define SEDE_WGMMA(T, type)                                                                      \
  template <>                                                                                    \
  struct Wgmma<T> {                                                                              \
    /* s[64, 64] = a b^T, or += where `adds`; both in shared memory. */                          \
    static __device__ __forceinline__ void scores(float (&s)[32], unsigned long long a,          \
                                                  unsigned long long b, int adds) {              \
      asm volatile(                                                                              \
          "{\n.reg .pred adds;\nsetp.ne.b32 adds, %34, 0;\n"                                     \
          "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                            \
          " {" SEDE_32 "}, %32, %33, adds, 1, 1, 0, 0;\n}"                                       \
          : SEDE_32_OF(s, 0)                                                                     \
          : "l"(a), "l"(b), "r"(adds));                                                          \
    }                                                                                            \
    /* o[64, N] += p b, p in registers. */                                                       \
    static __device__ __forceinline__ void output(float (&o)[32], const unsigned* p,             \
                                                  unsigned long long b) {                        \
      asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                   \
                   " {" SEDE_32 "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"                         \
                   : SEDE_32_OF(o, 0)                                                            \
                   : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(b));                        \
    }                                                                                            \
    static __device__ __forceinline__ void output(float (&o)[64], const unsigned* p,             \
                                                  unsigned long long b) {                        \
      asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                  \
                   " {" SEDE_64 "}, {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"                         \
                   : SEDE_32_OF(o, 0), SEDE_32_OF(o, 32)                                         \
                   : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(b));                        \
    }                                                                                            \
    static __device__ __forceinline__ void output(float (&o)[128], const unsigned* p,            \
                                                  unsigned long long b) {                        \
      asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                  \
                   " {" SEDE_128 "}, {%128,%129,%130,%131}, %132, 1, 1, 1, 1;"                   \
                   : SEDE_32_OF(o, 0), SEDE_32_OF(o, 32), SEDE_32_OF(o, 64), SEDE_32_OF(o, 96)   \
                   : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(b));                        \
    }                                                                                            \
  };
SEDE_WGMMA(Bf16, "bf16")
SEDE_WGMMA(F16, "f16")
#undef SEDE_WGMMA

}  // namespace sede_cuda
