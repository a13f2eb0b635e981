// A 64 x 64 tile of A B^T for matrices of any dtype and stride, by 128 threads.
#pragma once

#include "mma.cuh"
#include "numbers.cuh"

namespace sede_cuda {

constexpr int kTile = 64, kStep = 32, kThreads = 128;

// Rows are padded so that neighbouring rows start in different banks.
template <class T>
struct Tile {
  static constexpr int kPadded = kStep + (sizeof(T) == 2 ? 8 : 1);
  alignas(16) T at[kTile][kPadded];
};

// Rows row, row + 1, ... and columns k, k + 1, ...; zeros beyond, and in columns of empty slots.
template <class T>
__device__ __forceinline__ void load(Tile<T>& tile, const Matrix& m, index_t row, index_t k,
                                     const index_t* ids = nullptr) {
  const bool along_columns = m.col_stride == 1;
#pragma unroll 2
  for (int i = threadIdx.x; i < kTile * kStep; i += kThreads) {
    const int r = along_columns ? i / kStep : i % kTile;
    const int c = along_columns ? i % kStep : i / kTile;
    float x = 0.f;
    if (row + r < m.rows && k + c < m.cols && (ids == nullptr || ids[k + c] != kEmpty))
      x = element(m, row + r, k + c);
    tile.at[r][c] = operand<T>(x);
  }
}

// Sums in registers. Tensor cores: four warps in a square, each 32 x 32.
template <class T>
struct Product {
  float c[2][4][4] = {};

  __device__ __forceinline__ void add(const Tile<T>& a, const Tile<T>& b) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = warp / 2 * 32 + lane / 4, col = warp % 2 * 32 + lane / 4, k0 = lane % 4 * 2;
#pragma unroll
    for (int k = k0; k < k0 + kStep; k += 16) {
      unsigned x[2][4], y[4][2];
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n) x[m][n] = two(a, row + m * 16 + n % 2 * 8, k + n / 2 * 8);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        y[n][0] = two(b, col + n * 8, k);
        y[n][1] = two(b, col + n * 8, k + 8);
      }
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n) mma<T>(c[m][n], x[m], y[n][0], y[n][1]);
    }
  }

  // f(row, column, sum) for every element of the tile that this thread has.
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          f(warp / 2 * 32 + m * 16 + e / 2 * 8 + lane / 4,
            warp % 2 * 32 + n * 8 + lane % 4 * 2 + e % 2, c[m][n][e]);
  }

 private:
  static __device__ __forceinline__ unsigned two(const Tile<T>& tile, int row, int col) {
    return *reinterpret_cast<const unsigned*>(&tile.at[row][col]);
  }
};

// fp32 keeps all its bits: fused multiply-adds, a thread has 4 rows and every eighth column.
template <>
struct Product<float> {
  float c[4][8] = {};

  __device__ __forceinline__ void add(const Tile<float>& a, const Tile<float>& b) {
    const int row = threadIdx.x / 8 * 4, col = threadIdx.x % 8;
#pragma unroll 4
    for (int k = 0; k < kStep; ++k) {
      float x[4], y[8];
#pragma unroll
      for (int m = 0; m < 4; ++m) x[m] = a.at[row + m][k];
#pragma unroll
      for (int n = 0; n < 8; ++n) y[n] = b.at[col + 8 * n][k];
#pragma unroll
      for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 8; ++n) c[m][n] = fmaf(x[m], y[n], c[m][n]);
    }
  }

  template <class F>
  __device__ __forceinline__ void each(F f) const {
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int n = 0; n < 8; ++n)
        f(int(threadIdx.x) / 8 * 4 + m, int(threadIdx.x) % 8 + 8 * n, c[m][n]);
  }
};

// The tile of a b^T that starts at (row, col); columns of empty slots of both count as 0.
template <class T>
__device__ __forceinline__ void multiply(Product<T>& product, const Matrix& a, const Matrix& b,
                                         index_t row, index_t col, const index_t* ids = nullptr) {
  __shared__ Tile<T> left, right;
  for (index_t k = 0; k < a.cols; k += kStep) {
    load(left, a, row, k);
    load(right, b, col, k, ids);
    __syncthreads();
    product.add(left, right);
    __syncthreads();
  }
}

}  // namespace sede_cuda
