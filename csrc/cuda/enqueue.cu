// Ring writes in one launch: one block a key or a set. Every block reads the pointer; the last one
// to end moves it.
#include "device/reduce.cuh"
#include "device/ticket.cuh"

namespace sede_cuda {

constexpr int kEnqueueThreads = 128, kEnqueueWarps = kEnqueueThreads / 32;
constexpr float kUnitTolerance = 1e-6f;  // of the squared norm: such a key is stored as it came

// A damaged pointer is brought inside, so that nothing is written beside the ring.
__device__ __forceinline__ index_t place(index_t ptr, index_t size) {
  const index_t at = ptr % size;
  return at < 0 ? at + size : at;
}

using Counter = unsigned long long;

// For every thread of a block: the slot of key n, and the pointer after all keys.
struct Places {
  index_t slot, after;
};
__device__ __forceinline__ const Places& places_of(const Ring& ring, index_t n) {
  __shared__ Places found;
  if (threadIdx.x == 0) {
    const index_t start =
        place(index_t(atomicAdd(reinterpret_cast<Counter*>(ring.ptr), Counter(0))), ring.size);
    found = {(start + n) % ring.size, (start + ring.total) % ring.size};
  }
  __syncthreads();
  return found;
}

// By one thread: the id of a slot, -1 where the key was refused, and what is counted.
__device__ __forceinline__ void name_slot(const Ring& ring, index_t slot, index_t n, bool good) {
  const index_t id = !good ? kEmpty : ring.key_ids == nullptr ? kAnonymous : ring.key_ids[n];
  const int change = int(id != kEmpty) - int(ring.ids[slot] != kEmpty);
  ring.ids[slot] = id;
  // Integers: the order of the additions does not show.
  if (change != 0) atomicAdd(reinterpret_cast<Counter*>(ring.count), Counter(index_t(change)));
  if (!good) atomicAdd(reinterpret_cast<Counter*>(ring.rejected), Counter(1));
}

// The last block moves the pointer past all keys.
__device__ __forceinline__ void move_on(const Ring& ring, index_t after) {
  if (last_block(ring.tickets) && threadIdx.x == 0)
    atomicExch(reinterpret_cast<Counter*>(ring.ptr), Counter(after));
}

// x as the row will hold it.
__device__ __forceinline__ float stored(int dtype, float x) {
  return dtype == bf16 ? number(operand<Bf16>(x)) : dtype == f16 ? number(operand<F16>(x)) : x;
}

// Set n of the keys.
__device__ __forceinline__ Matrix fragments_of(const EnqueueSets& op, index_t n) {
  Matrix set = op.keys;
  const index_t bytes = set.dtype == f32 ? 4 : 2;
  set.data = static_cast<const char*>(set.data) + n * op.set_stride * bytes;
  return set;
}

__device__ __forceinline__ void enqueue(const Enqueue& op) {
  const index_t n = op.ring.skipped + blockIdx.x, D = op.dim;
  const Places& at = places_of(op.ring, n);
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
    if (threadIdx.x == 0) op.row_scale[at.slot] = scale;
  }
  for (index_t d = threadIdx.x; d < D; d += kEnqueueThreads) {
    float x = good ? element(op.keys, n, d) * factor : 0.f;
    if (quantize) x = fminf(fmaxf(rintf(__fdiv_rn(x, divisor)), -127.f), 127.f);
    store(op.rows, op.row_dtype, at.slot * op.row_stride + d * op.col_stride, x);
  }
  if (threadIdx.x == 0) name_slot(op.ring, at.slot, n, good);
  move_on(op.ring, at.after);
}

__device__ __forceinline__ void enqueue(const EnqueueSets& op) {
  const index_t n = op.ring.skipped + blockIdx.x;
  const Places& at = places_of(op.ring, n);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  index_t length = op.width;
  if (op.key_lengths != nullptr) length = max(index_t(0), min(op.key_lengths[n], length));
  int odd = 0;
  for (index_t r = warp; r < length; r += kEnqueueWarps) {
    const Matrix key = fragments_of(op, n);
#pragma unroll 1
    for (index_t d = lane; d < op.dim; d += 32)
      odd |= !finite(stored(op.row_dtype, element(key, r, d)));
  }
  const bool good = over_block<kEnqueueWarps>(odd, Larger()) == 0;
  for (index_t r = warp; r < op.longest; r += kEnqueueWarps) {
    const Matrix key = fragments_of(op, n);
    const index_t to = at.slot * op.slot_stride + r * op.row_stride;
#pragma unroll 1
    for (index_t d = lane; d < op.dim; d += 32)
      store(op.rows, op.row_dtype, to + d * op.col_stride,
            good && r < length ? element(key, r, d) : 0.f);
  }
  if (threadIdx.x == 0) {
    op.lengths[at.slot] = good ? length : 0;
    name_slot(op.ring, at.slot, n, good);
  }
  move_on(op.ring, at.after);
}

}  // namespace sede_cuda

extern "C" __global__ void __launch_bounds__(sede_cuda::kEnqueueThreads)
    write_keys(const __grid_constant__ sede_cuda::Enqueue op) {
  sede_cuda::enqueue(op);
}

extern "C" __global__ void __launch_bounds__(sede_cuda::kEnqueueThreads)
    write_sets(const __grid_constant__ sede_cuda::EnqueueSets op) {
  sede_cuda::enqueue(op);
}
