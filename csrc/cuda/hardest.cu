// The k largest of the k so far and of a chunk of similarities. One block a row.
//
// A similarity becomes an integer key of the same order. The k-th largest key is found digit by
// digit from counts of digits; what lies above it is taken, and of its equals the first columns.
#include "device/match.cuh"
#include "device/reduce.cuh"

namespace sede_cuda {

constexpr int kTopThreads = 128, kTopWarps = kTopThreads / 32, kDigits = 256;

// Rising with x; -inf and NaN, which are no candidates, become 0.
__device__ __forceinline__ unsigned key_of(float x) {
  if (!(x > -infinity())) return 0;
  const unsigned bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float value_of(unsigned key) {
  if (key == 0) return -infinity();
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ void merge_top(const Top& op) {
  __shared__ unsigned keys[kMostTop];
  __shared__ index_t cols[kMostTop];
  __shared__ int digits[kDigits];
  __shared__ int taken, of_warp[kTopWarps];
  const index_t row = blockIdx.x;
  const int k = op.k;
  const float* s = op.s + row * op.cols;
  const index_t own = op.match.query_ids == nullptr ? 0 : op.match.query_ids[row];
  float* values = op.values + row * k;
  index_t* indices = op.indices + row * k;

  // Candidate i: the old ones first, whose rows have lower indices, then the chunk's columns.
  const index_t old = op.fresh ? 0 : k, all = old + op.cols;
  const auto candidate = [&](index_t i) {
    if (i < old) return key_of(values[i]);
    const index_t col = i - old;
    return counts(op.match, row, op.first + col, op.bank_rows, own) ? key_of(s[col]) : 0u;
  };
  const auto index = [&](index_t i) { return i < old ? indices[i] : op.first + i - old; };

  unsigned threshold = 0;
  int wanted = k;  // of those whose upper digits are the threshold's
#pragma unroll 1
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int d = threadIdx.x; d < kDigits; d += kTopThreads) digits[d] = 0;
    __syncthreads();
    const unsigned upper = shift == 24 ? 0u : 0xffffffffu << (shift + 8);
    for (index_t i = threadIdx.x; i < all; i += kTopThreads) {
      const unsigned key = candidate(i);
      if ((key & upper) == (threshold & upper)) atomicAdd(&digits[key >> shift & 255], 1);
    }
    __syncthreads();
    int digit = kDigits - 1;
    while (digit > 0 && digits[digit] < wanted) wanted -= digits[digit--];
    threshold |= unsigned(digit) << shift;
    __syncthreads();
  }

  // Above the threshold in any order, for a sort follows.
  if (threadIdx.x == 0) taken = 0;
  __syncthreads();
  for (index_t i = threadIdx.x; i < all; i += kTopThreads) {
    const unsigned key = candidate(i);
    if (key <= threshold) continue;
    const int slot = atomicAdd(&taken, 1);
    keys[slot] = key;
    cols[slot] = index(i);
  }
  __syncthreads();
  // Of the equal ones the first, in the order of their columns.
  int filled = taken;
  __syncthreads();
  for (index_t start = 0; threshold != 0 && filled < k && start < all; start += kTopThreads) {
    const index_t i = start + threadIdx.x;
    const bool equal = i < all && candidate(i) == threshold;
    const unsigned vote = __ballot_sync(kAllLanes, equal);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) of_warp[warp] = __popc(vote);
    __syncthreads();
    int slot = filled + __popc(vote & ((1u << lane) - 1));
    for (int w = 0; w < kTopWarps; ++w) {
      if (w < warp) slot += of_warp[w];
      filled += of_warp[w];
    }
    if (equal && slot < k) {
      keys[slot] = threshold;
      cols[slot] = index(i);
    }
    __syncthreads();
  }
  filled = min(filled, k);

  int size = 1;
  while (size < k) size *= 2;
  for (int i = filled + threadIdx.x; i < size; i += kTopThreads) {
    keys[i] = 0;
    cols[i] = INT64_MAX;
  }
  // Bitonic: falling keys, rising columns among equal ones.
#pragma unroll 1
  for (int length = 2; length <= size; length *= 2)
#pragma unroll 1
    for (int step = length / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < size; i += kTopThreads) {
        const int j = i ^ step;
        if (j <= i) continue;
        const bool after = keys[i] < keys[j] || (keys[i] == keys[j] && cols[i] > cols[j]);
        if (after != ((i & length) == 0)) continue;
        const unsigned key = keys[i];
        const index_t col = cols[i];
        keys[i] = keys[j];
        cols[i] = cols[j];
        keys[j] = key;
        cols[j] = col;
      }
    }
  __syncthreads();
  for (int i = threadIdx.x; i < k; i += kTopThreads) {
    values[i] = value_of(keys[i]);
    indices[i] = keys[i] == 0 ? -1 : cols[i];
  }
}

}  // namespace sede_cuda

extern "C" __global__ void __launch_bounds__(sede_cuda::kTopThreads, 8)
    merge_top(sede_cuda::Top op) {
  sede_cuda::merge_top(op);
}
