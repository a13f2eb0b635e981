// What the host hands to the kernels: plain structs, laid out alike on both sides.
#pragma once

#include <cstdint>

namespace sede_cuda {

using index_t = std::int64_t;

// Codes of backends/cpu/_native.py and csrc/kernels/api.h.
enum DType : int { f32 = 0, f64 = 1, bf16 = 2, f16 = 3, i8 = 4 };
enum Select : int { keep = 0, mask = 1, positive = 2 };

constexpr int kExponents = 3, kAccumulators = 2;
// A pass over a bank has at most so many parts.
constexpr int kMostParts = 64;
// The ids of an empty slot, and of a row whose key came without one.
constexpr index_t kEmpty = -1, kAnonymous = -2;

// Elements data[r * row_stride + c * col_stride]; strides in elements.
struct Matrix {
  const void* data;
  index_t rows, cols, row_stride, col_stride;
  int dtype;
};

// Which columns count for a row.
struct Match {
  const index_t* query_ids;  // [B]
  const index_t* bank_ids;   // [K]
  const float* limit;        // [B]
  int select;
  int in_batch;  // the columns are the keys of the batch: never the row's own
};

// A number, or where it lies on the device in fp32 or fp64.
struct Number {
  float value;
  const void* at;  // null: the number
  int dtype;
};

// Largest similarities that count: s+ + margin of a row of queries and its key.
struct Limits {
  Matrix query, key;
  Number margin;
  float* limit;  // [B]
};

// The temperature and hardness of a loss: numbers, or where they lie on the device.
struct Scalars {
  double inverse, hardness;          // 1 / temperature; 0 where the hardness does not count
  const void *temperature, *beta;    // or null: the number
  int temperature_dtype, beta_dtype;  // f32 or f64
};

// What a pass looks for. The first accumulators of the exponents keep a weighted sum of rows.
struct Want {
  const float* scales;    // [>= E], or null: those of a loss with these scalars
  int order[kExponents];  // exponent n of a kernel is the caller's order[n]
  int exponents, accumulators;
  int moments, hardest;
  Scalars scalars;
  int further;      // 1 / tau and 0 instead of 1 / tau + hardness and hardness
  int unit_length;  // a promise: rows of at most unit length, and exponents below 43
};

// Unfinished sums of S parts of a bank. Weights are relative to 2^ceil(c log2(e) peak).
struct Partial {
  float* peak;     // [S, B] the largest similarity that counts
  float* total;    // [S, E, B] sums of weights
  float* mass;     // [S, A, B] sums of the weights as the product with the rows took them
  float* moment;   // [S, E, B] or null
  float* acc;      // [S, A, B, D]
  index_t* count;  // [S, B]
  index_t* index;  // [S, B] or null
  int parts;
};

// Finished sums, exponents in the caller's order.
struct Sums {
  float* lse;      // [E, B]
  float* moment;   // [E, B] or null
  float* acc;      // [A, B, D]
  index_t* count;  // [B]
  float* top;      // [B] or null
  index_t* index;  // [B] or null
};

// One of the passes over banks of one shape that a launch serves.
struct Side {
  const void* query;  // [B, D], rows of query_stride elements
  const void* bank;   // [K, D], rows of bank_stride elements
  Match match;
  Partial out;
  int plane;        // the exponent whose weights sum the rows; 0 also writes all other sums
  int further;      // wants Fused::further
  const void* key;  // [B, D], rows of key_stride elements: the limits are s+ + margin; or null
  index_t key_stride;
  int limited;  // by these or by match.limit
};
// Two sides, two weighted sums of each, and the same of further positives.
constexpr int kFusedSides = 8;

// Rows of a tile of the fused pass: as many as leave registers for O and shared memory for tiles.
constexpr int fused_columns(int dim, int exponents, bool sums_rows, int bytes) {
  if (bytes == 4 && dim > 128) return 16;  // of an element
  return dim <= 128 ? 64 : dim > 256 || (exponents > 1 && sums_rows) ? 16 : 32;
}
// Groups of warps that have the same queries and other columns of O.
constexpr int fused_groups(int dim, bool sums_rows) { return dim > 256 && sums_rows ? 2 : 1; }
constexpr int kFusedWarps = 4, kFusedRows = 16 * kFusedWarps;

struct Fused {
  Side side[kFusedSides];
  Want want, further;
  Number margin;
  index_t rows, bank_rows, query_stride, bank_stride;
  int dim;             // a multiple of 8
  int tiles_per_part;
  int fixed;  // no similarity is above 1 (but for rounding), and e^{2 c} is a number
};

// s[r, c] = scale[c] query[r] . bank[c] of a chunk of the bank.
struct Similarities {
  Matrix query, bank;
  const float* scale;  // [C] or null
  float* s;            // [B, C]
};

// The weights of a chunk of similarities, and the sums with the chunk in them.
struct Weigh {
  const float* s;      // [B, C]
  const float* scale;  // [C] or null: a weight is multiplied by it before it is rounded
  index_t rows, cols, bank_rows, first;  // the chunk is columns first, first + 1, ... of the bank
  Match match;
  Want want;
  Partial sums;   // of one part
  float* shrink;  // [A, B] what the accumulators so far are multiplied by
  void* weights;  // [A, B, C] in the operand dtype
  int fresh;      // whether sums hold nothing yet
};

// out[r, d] = shrink[r] out[r, d] + sum_k weights[r, k] rows[d, k]; without shrink: no sum so far.
struct Accumulate {
  Matrix weights, rows;
  const index_t* ids;   // [k] or null: a row of an empty slot may hold anything and counts as 0
  const float* shrink;  // [r] or null
  float* out;           // [r, d]
  int fresh;            // whether out holds nothing yet
};
// As many as a launch has planes.
struct Accumulations {
  Accumulate of[4];
};

struct Finish {
  Partial from;
  Sums to;
  Want want;
  index_t rows, dim;
  int scaled;  // weights carry the scale of 8-bit rows: the mean divides by the unrounded total
};

// Log-sum-exps and the gradients by them.
struct GradientTerm {
  const float* lse;   // [E, B]
  const float* grad;  // [E, B]
  Match match;
};
struct GradientSide {
  Matrix query, key;        // the keys of the chunk
  GradientTerm term[2];
  const float* positive;    // [B] s+, where a margin limits the first term
  const float* row_weight;  // [B] or null: 1
  void* weights;            // [B, C] in the operand dtype
};
// Gradient weights of a chunk of in-batch keys: the sum over terms and their exponents e of
// grad[e, r] exp(c_e s - lse[e, r]), times the upstream gradient and the weight of the row.
struct Gradients {
  GradientSide side[2];
  Want want[2];  // of the terms
  int terms;
  index_t rows, first;
  int limited;  // whether there is a margin
  Number margin;
  const float* upstream;       // [B], or one with a step of 0, or null: 1
  index_t step;
  const unsigned char* batch;  // whether the batch counts, or null: it does
};

// The k <= kMostTop largest so far, merged with a chunk of similarities; of ties the lowest index.
struct Top {
  const float* s;  // [B, C]
  index_t rows, cols, bank_rows, first;
  Match match;
  int k;
  float* values;     // [B, k], falling
  index_t* indices;  // [B, k], -1 where nothing counts
  int fresh;         // whether values hold nothing yet
};
constexpr int kMostTop = 1024;

// A ring of slots: keys skipped, skipped + 1, ... of `total` go to the slots from the pointer on,
// which then moves on by all of them.
struct Ring {
  index_t size;
  index_t *ids, *ptr, *count, *rejected;  // [K], [], [], []
  const index_t* key_ids;                 // [N] or null
  index_t skipped, total;
  int* tickets;  // a 0, and left so
};

struct Enqueue {
  Ring ring;
  void* rows;  // [K, D] of row_dtype
  index_t dim, row_stride, col_stride;
  int row_dtype;
  float* row_scale;  // [K] of 8-bit rows, or null
  Matrix keys;       // [N, D]
  int normalize;
};

// Sets of at most `longest` fragments.
struct EnqueueSets {
  Ring ring;
  void* rows;  // [K, L, D] of row_dtype
  index_t longest, dim, slot_stride, row_stride, col_stride;
  int row_dtype;
  index_t* lengths;  // [K]
  Matrix keys;       // [width, D], the first set of [N, width, D]
  index_t set_stride, width;
  const index_t* key_lengths;  // [N] or null: all of `width`
};

enum Rule : int { mean = 0, prob = 1, absolute = 2, relative = 3, topk = 4, quantile = 5 };

// Rows of attention, contiguous, of one dtype.
struct Erase {
  const void* attention;        // [N, L]
  const index_t* lengths;       // [N] or null
  void* out;                    // [N, L]
  unsigned char* mask;          // [N, L], 1 where a fragment stays
  index_t rows;
  int length, dtype, rule;
  double threshold;
  int low, keep_min, renormalize;
};

struct EraseBackward {
  const void* grad_out;       // [N, L]
  const void* attention;      // [N, L]
  const unsigned char* mask;  // [N, L]
  void* grad;                 // [N, L]
  index_t rows;
  int length, dtype, renormalize;
};
// Rows of at most so many fragments have a warp each, four a block; longer ones a block each.
constexpr int kWarpRow = 1024, kEraseWarps = 4, kBlockRow = 16384, kEraseThreads = 256;

}  // namespace sede_cuda
