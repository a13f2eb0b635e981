// s+ of a row, the same to the bit in every kernel: eight columns at a time, every fourth of these
// groups added up, and the four sums of them.
#pragma once

#include "numbers.cuh"
#include "reduce.cuh"

namespace sede_cuda {

// Eight neighbouring columns of rows of vectors.
template <class T>
__device__ __forceinline__ float dot_of_8(const T* a, const T* b) {
  const uint4 x = *reinterpret_cast<const uint4*>(a), y = *reinterpret_cast<const uint4*>(b);
  const T *left = reinterpret_cast<const T*>(&x), *right = reinterpret_cast<const T*>(&y);
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum = fmaf(number(left[i]), number(right[i]), sum);
  return sum;
}

template <>
__device__ __forceinline__ float dot_of_8<float>(const float* a, const float* b) {
  float sum = 0.f;
#pragma unroll
  for (int first = 0; first < 8; first += 4) {
    const float4 x = *reinterpret_cast<const float4*>(a + first);
    const float4 y = *reinterpret_cast<const float4*>(b + first);
    sum = fmaf(x.w, y.w, fmaf(x.z, y.z, fmaf(x.y, y.y, fmaf(x.x, y.x, sum))));
  }
  return sum;
}

// s+ + margin of two rows of vectors: four neighbouring lanes have them.
template <class T>
__device__ __forceinline__ void limits_of_rows(const Fused& op, const Side& side,
                                               const int (&row)[2], float (&limit)[2]) {
  const float margin = number_of(op.margin);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const index_t at = min(row[r], int(op.rows) - 1);
    const T* query = static_cast<const T*>(side.query) + at * op.query_stride;
    const T* key = static_cast<const T*>(side.key) + at * side.key_stride;
    float sum = 0.f;
#pragma unroll 2
    for (int c = threadIdx.x % 4; c < op.dim / 8; c += 4) sum += dot_of_8(query + c * 8, key + c * 8);
    limit[r] = over_lanes<4>(sum, Plus()) + margin;
  }
}

// Of rows of any dtype and stride, by a block of THREADS threads; every thread gets it.
template <int THREADS>
__device__ __forceinline__ float row_dot(const Matrix& a, const Matrix& b, index_t row) {
  __shared__ float of_8[THREADS];
  float sum = 0.f;
#pragma unroll 1
  for (index_t first = 0; first < a.cols; first += 8 * THREADS) {
    const index_t begin = first + 8 * threadIdx.x;
    float mine = 0.f;
#pragma unroll 4
    for (index_t d = begin; d < min(begin + 8, a.cols); ++d)
      mine = fmaf(element(a, row, d), element(b, row, d), mine);
    __syncthreads();  // what was there may still be read
    of_8[threadIdx.x] = mine;
    __syncthreads();
    const int groups = int(min(index_t(THREADS), (a.cols - first + 7) / 8));
#pragma unroll 1
    for (int c = threadIdx.x % 4; c < groups; c += 4) sum += of_8[c];
  }
  return over_lanes<4>(sum, Plus());
}

}  // namespace sede_cuda
