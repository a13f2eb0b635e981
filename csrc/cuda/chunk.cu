// A pass over a chunk of the bank in steps, for matrices of any dtype, stride and width: first the
// similarities, to memory; their weights and sums a row; the product of the weights with the rows.
// And the gradient weights of a batch.
#include "device/match.cuh"
#include "device/product.cuh"
#include "device/reduce.cuh"

namespace sede_cuda {

template <class T>
__device__ __forceinline__ void similarities(const Similarities& op) {
  const index_t row = index_t(blockIdx.y) * kTile, col = index_t(blockIdx.x) * kTile;
  Product<T> product;
  multiply(product, op.query, op.bank, row, col);
  product.each([&](int r, int c, float sum) {
    if (row + r >= op.query.rows || col + c >= op.bank.rows) return;
    const float scale = op.scale == nullptr ? 1.f : op.scale[col + c];
    op.s[(row + r) * op.bank.rows + col + c] = sum * scale;
  });
}

// One block a row.
template <class T>
__device__ __forceinline__ void weigh(const Weigh& op) {
  constexpr int WARPS = kThreads / 32;
  __shared__ float bases[kExponents];
  load_bases(op.want, bases);  // barriers follow
  const index_t row = blockIdx.x, B = op.rows;
  const float* s = op.s + row * op.cols;
  const index_t own = op.match.query_ids == nullptr ? 0 : op.match.query_ids[row];
  const float limit = op.match.limit == nullptr ? infinity() : op.match.limit[row];
  const auto valid = [&](index_t col) {
    return counts(op.match, row, op.first + col, op.bank_rows, own) &&
           (op.match.limit == nullptr || s[col] <= limit);
  };

  float high = -infinity();
  index_t first = INT64_MAX, count = 0;
  for (index_t col = threadIdx.x; col < op.cols; col += kThreads)
    if (valid(col)) {
      ++count;
      if (s[col] > high) {
        high = s[col];
        first = col;
      }
    }
  const float chunk_peak = over_block<WARPS>(high, Larger());
  first = over_block<WARPS>(high == chunk_peak ? first : INT64_MAX, Smaller());
  count = over_block<WARPS>(count, Plus());
  const float old_peak = op.fresh ? -infinity() : op.sums.peak[row];
  const float peak = fmaxf(old_peak, chunk_peak);
  __syncthreads();  // every thread has read the old peak
  if (threadIdx.x == 0) {
    op.sums.peak[row] = peak;
    op.sums.count[row] = count + (op.fresh ? 0 : op.sums.count[row]);
    if (op.sums.index != nullptr) {
      if (op.fresh) op.sums.index[row] = -1;
      if (chunk_peak > old_peak) op.sums.index[row] = op.first + first;
    }
  }

#pragma unroll 1
  for (int e = 0; e < op.want.exponents; ++e) {
    const float c2 = bases[e], base = log2_base(peak, c2);
    const bool kept = e < op.want.accumulators;
    T* weights = kept ? static_cast<T*>(op.weights) + (e * B + row) * op.cols : nullptr;
    float total = 0.f, mass = 0.f, moment = 0.f;
    for (index_t col = threadIdx.x; col < op.cols; col += kThreads) {
      const bool in = valid(col);
      const float p = in ? exp2_fast(s[col] * c2 - base) : 0.f;
      total += p;
      if (in) moment += p * s[col];
      if (!kept) continue;
      const T weight = operand<T>(op.scale != nullptr && in ? p * op.scale[col] : p);
      mass += number(weight);
      weights[col] = weight;
    }
    total = over_block<WARPS>(total, Plus());
    mass = over_block<WARPS>(mass, Plus());
    moment = over_block<WARPS>(moment, Plus());
    if (threadIdx.x != 0) continue;
    const float shrink = rebase(old_peak, base, c2);
    const index_t at = e * B + row;
    const auto join = [&](float& sum, float more) {
      sum = op.fresh ? more : sum * shrink + more;
    };
    join(op.sums.total[at], total);
    if (op.want.moments) join(op.sums.moment[at], moment);
    if (kept) {
      join(op.sums.mass[at], mass);
      op.shrink[at] = shrink;
    }
  }
}

template <class T>
__device__ __forceinline__ void accumulate(const Accumulate& op) {
  const index_t row = index_t(blockIdx.y) * kTile, col = index_t(blockIdx.x) * kTile;
  if (row >= op.weights.rows || col >= op.rows.rows) return;  // another plane is larger
  Product<T> product;
  multiply(product, op.weights, op.rows, row, col, op.ids);
  product.each([&](int r, int c, float sum) {
    if (row + r >= op.weights.rows || col + c >= op.rows.rows) return;
    float& out = op.out[(row + r) * op.rows.rows + col + c];
    const float so_far = op.fresh ? 0.f : op.shrink == nullptr ? out : out * op.shrink[row + r];
    out = so_far + sum;
  });
}
template <class T>
__device__ __forceinline__ void accumulate(const Accumulations& op) {
  accumulate<T>(op.of[blockIdx.z]);
}

// What the terms make of a similarity.
__device__ __forceinline__ float gradient(const Gradients& op, const GradientSide& side,
                                          const float (&bases)[2][kExponents], float margin,
                                          index_t row, index_t col, float s) {
  float weight = 0.f;
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    if (t >= op.terms) break;
    const GradientTerm& term = side.term[t];
    const Match& match = term.match;
    if (!counts(match, row, col, op.rows, match.query_ids == nullptr ? 0 : match.query_ids[row]))
      continue;
    if (match.limit != nullptr && !(s <= match.limit[row])) continue;
    if (t == 0 && op.limited && !(s <= side.positive[row] + margin)) continue;
#pragma unroll 1
    for (int e = 0; e < op.want[t].exponents; ++e)
      weight = fmaf(term.grad[e * op.rows + row],
                    exp2_fast((s * bases[t][e] - term.lse[e * op.rows + row]) * kLog2e), weight);
  }
  return weight;
}

// The gradient weights of a chunk of in-batch keys.
template <class T>
__device__ __forceinline__ void gradients(const Gradients& op) {
  __shared__ float bases[2][kExponents];  // barriers follow
  if (threadIdx.x < 2 * kExponents) {
    const int t = int(threadIdx.x) / kExponents, e = int(threadIdx.x) % kExponents;
    bases[t][e] = t < op.terms && e < op.want[t].exponents ? exponent_of(op.want[t], e) : 0.f;
  }
  const GradientSide& side = op.side[blockIdx.z];
  const index_t row = index_t(blockIdx.y) * kTile, col = index_t(blockIdx.x) * kTile;
  const bool batch = op.batch == nullptr || *op.batch != 0;
  const float margin = op.limited ? number_of(op.margin) : 0.f;
  Product<T> product;
  multiply(product, side.query, side.key, row, col);
  __syncthreads();
  product.each([&](int r, int c, float s) {
    if (row + r >= op.rows || col + c >= side.key.rows) return;
    const float upstream = op.upstream == nullptr ? 1.f : op.upstream[(row + r) * op.step];
    const float of_row = side.row_weight == nullptr ? 1.f : side.row_weight[row + r];
    const float weight =
        batch ? gradient(op, side, bases, margin, row + r, op.first + col + c, s) : 0.f;
    static_cast<T*>(side.weights)[(row + r) * side.key.rows + col + c] =
        operand<T>(weight * (upstream * of_row));
  });
}

}  // namespace sede_cuda

using namespace sede_cuda;

#define SEDE_STEP(function, T, Op, name, ...)                        \
  extern "C" __global__ void __launch_bounds__(__VA_ARGS__)         \
      function##_##name(const __grid_constant__ Op op) {            \
    function<T>(op);                                                \
  }
#define SEDE_STEPS(name, T)                                   \
  SEDE_STEP(similarities, T, Similarities, name, kThreads, 4) \
  SEDE_STEP(weigh, T, Weigh, name, kThreads, 4)               \
  SEDE_STEP(accumulate, T, Accumulations, name, kThreads, 4)  \
  SEDE_STEP(gradients, T, Gradients, name, kThreads)

SEDE_STEPS(f32, float)
SEDE_STEPS(bf16, Bf16)
SEDE_STEPS(f16, F16)
