// Ring writes: normalise, cast or quantise, ids. One block a key; the pointer is read by every block
// and moved by a second launch after them.
#include "device/reduce.cuh"

namespace sede_cuda {

constexpr int kEnqueueThreads = 128, kEnqueueWarps = kEnqueueThreads / 32;
constexpr float kUnitTolerance = 1e-6f;  // of the squared norm: such a key is stored as it came

// A damaged pointer is brought inside, so that nothing is written beside the ring.
__device__ __forceinline__ index_t place(index_t ptr, index_t size) {
  const index_t at = ptr % size;
  return at < 0 ? at + size : at;
}

__device__ __forceinline__ bool finite(float x) { return x - x == 0.f; }

// x as the row will hold it.
__device__ __forceinline__ float stored(int dtype, float x) {
  return dtype == bf16 ? number(operand<Bf16>(x)) : dtype == f16 ? number(operand<F16>(x)) : x;
}

__device__ __forceinline__ void store(void* rows, int dtype, index_t at, float x) {
  switch (dtype) {
    case f32: static_cast<float*>(rows)[at] = x; break;
    case bf16: static_cast<Bf16*>(rows)[at] = operand<Bf16>(x); break;
    case f16: static_cast<F16*>(rows)[at] = operand<F16>(x); break;
    default: static_cast<signed char*>(rows)[at] = (signed char)(int(x));
  }
}

__device__ __forceinline__ void enqueue(const Enqueue& op) {
  const index_t n = op.skipped + blockIdx.x, D = op.dim;
  const index_t slot = (place(*op.ptr, op.size) + n) % op.size;
  const bool quantize = op.row_scale != nullptr;
  float square = 0.f, peak = 0.f;
  int odd = 0;
  for (index_t d = threadIdx.x; d < D; d += kEnqueueThreads) {
    const float key = element(op.keys, n, d);
    square = fmaf(key, key, square);
    peak = fmaxf(peak, fabsf(key));
    odd |= !finite(quantize ? key : stored(op.row_dtype, key));
  }
  square = over_block<kEnqueueWarps>(square, Plus());
  peak = over_block<kEnqueueWarps>(peak, Larger());
  odd = over_block<kEnqueueWarps>(odd, Larger());

  bool good = odd == 0;
  float factor = 1.f;
  if (op.normalize) {
    good = finite(square);
    if (good && square != 0.f && fabsf(square - 1.f) > kUnitTolerance)
      factor = __fdiv_rn(1.f, __fsqrt_rn(square));
  }
  float divisor = 1.f;
  if (quantize) {
    const float scale = good ? __fdiv_rn(peak * factor, 127.f) : 0.f;
    if (scale != 0.f) divisor = scale;
    if (threadIdx.x == 0) op.row_scale[slot] = scale;
  }
  for (index_t d = threadIdx.x; d < D; d += kEnqueueThreads) {
    float x = good ? element(op.keys, n, d) * factor : 0.f;
    if (quantize) x = fminf(fmaxf(rintf(__fdiv_rn(x, divisor)), -127.f), 127.f);
    store(op.rows, op.row_dtype, slot * op.row_stride + d * op.col_stride, x);
  }
  if (threadIdx.x != 0) return;
  const index_t id = !good ? kEmpty : op.key_ids == nullptr ? kAnonymous : op.key_ids[n];
  const int change = int(id != kEmpty) - int(op.ids[slot] != kEmpty);
  op.ids[slot] = id;
  // Integers: the order of the additions does not show.
  using Counter = unsigned long long;
  if (change != 0) atomicAdd(reinterpret_cast<Counter*>(op.count), Counter(index_t(change)));
  if (!good) atomicAdd(reinterpret_cast<Counter*>(op.rejected), Counter(1));
}

}  // namespace sede_cuda

extern "C" __global__ void __launch_bounds__(sede_cuda::kEnqueueThreads)
    write_keys(sede_cuda::Enqueue op) {
  sede_cuda::enqueue(op);
}

extern "C" __global__ void advance_pointer(sede_cuda::Advance op) {
  *op.ptr = (sede_cuda::place(*op.ptr, op.size) + op.keys) % op.size;
}
