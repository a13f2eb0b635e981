// What the kernels offer to the drivers: plain structs and one table of functions per instruction
// set. Every kernel file is compiled once per instruction set inside its own namespace (SEDE_ISA).
#pragma once

#include <cstdint>
#include <type_traits>

#include "ordered.h"

namespace sede {

using index_t = std::int64_t;

enum class DType : int { f32 = 0, f64 = 1, bf16 = 2, f16 = 3, i8 = 4 };
enum class Select : int { keep = 0, mask = 1, positive = 2 };

// A matrix of any strides (in elements).
struct Matrix {
  const void* data;
  index_t rows, cols, row_stride, col_stride;
  DType dtype;
};

// One call of the core op; pointers typed void are float, or double when the query is fp64.
struct BankLse {
  Matrix query, bank;
  const float* row_scale;       // [K] or null
  const void* scales;           // [E]
  int exponents;                // E
  const index_t* query_ids;     // [B] or null
  const index_t* bank_ids;      // [K] or null
  const void* limit;            // [B] or null
  Select select;
  bool empty_slots;             // a bank id of -1 is an empty slot (else: an unknown id)
  bool skip_diagonal;           // in-batch negatives: slot j is never valid for query i = j
  void* scores;                 // [panels of queries][K][panel] of s: the pass over in-batch negatives
                                // writes them, its backward reads them; null: formed again
  bool moments, hardest;
  int accumulators;             // A <= 2
  int accumulate[2];            // indices into scales
};

// Per-query sums of one bank slice. All arrays have one entry a query of the block, padded to the
// vector length; those over exponents are [E][padded].
template <class T>
struct SliceState {
  using Int = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  T* reference;   // value the exponents are taken relative to; -inf before the first valid slot
  T* sum;
  T* moment;
  T* mass;        // [accumulators][padded] of the weights as the product uses them: bf16 kernels only
  T* top;
  Int* top_index; // relative to the slice's first row
  Int* count;
  index_t padded;
};

// Sizes the driver picks from the caches.
struct Tiling {
  index_t bank_rows;  // rows of one bank tile
  index_t depth;      // block over D of the first product
};

template <class T>
struct SliceCall {
  const BankLse* op;
  const void* packed_query;        // panels of the whole query block
  index_t query_begin, queries;    // block of queries
  index_t bank_begin, bank_end;    // slice of the bank
  Tiling tiling;
  SliceState<T> state;
  T* acc[2];                       // [queries][acc_stride] each, written (not added to)
  index_t acc_stride;              // >= dim rounded up to the vector length
  char* scratch;                   // 64-byte aligned
};

// The k most similar rows of a slice; op->exponents is 0. Keys are those of ordered.h.
template <class T>
struct HardestCall {
  const BankLse* op;
  const void* packed_query;
  index_t query_begin, queries, bank_begin, bank_end;
  Tiling tiling;
  index_t k;
  index_t capacity;                    // > k: candidates a query may have before they are cut to k
  void* keys;                          // [queries][k], in any order
  index_t* found;                      // [queries] keys in use
  typename Ordered<T>::Value* bounds;  // [queries] of the block, shared by its slices; 0 at first
  char* scratch;
};

// Gradients of in-batch negatives for a slice of the keys (op->bank) and all queries.
template <class T>
struct BatchCall {
  const BankLse* op;
  const void* packed_query;  // all queries
  index_t bank_begin, bank_end;
  Tiling tiling;
  const T* lse;              // [E, B]
  const T* grad;             // [E, B] gradient of lse times the gradient's scale
  T* query_grad;             // [B][grad_stride], this slice's share
  index_t grad_stride;
  T* key_grad;               // [B][D], rows of the slice written
  char* scratch;
};

// Keys into a ring. A key whose row would not be finite is refused: its slot gets zeros and id -1.
struct Enqueue {
  Matrix rows;               // the ring; written
  float* row_scale;          // [K] for int8 rows, else null
  index_t* ids;              // [K]
  Matrix keys;
  const index_t* key_ids;    // [N] or null: -2
  index_t first_slot;        // of key 0
  bool normalize;
};

// Sets of fragments into a ring of them. A set with a fragment whose row would not be finite is
// refused: its slot gets zeros, length 0 and id -1.
struct EnqueueSets {
  Matrix rows;                 // of slot 0: [L][D] floating; written
  index_t slots, slot_step;    // slot n starts n slot_step elements further
  index_t* lengths;            // [slots]
  index_t* ids;                // [slots]
  Matrix keys;                 // of set 0: [L'][D] with L' <= L
  index_t sets, set_step;
  const index_t* key_lengths;  // [sets] or null: L'. What lies beyond a length is not read
  const index_t* key_ids;      // [sets] or null: -2
  index_t first_slot;          // of set 0
};

struct Enqueued {
  index_t filled;    // slots filled by the call less those it emptied
  index_t rejected;  // keys refused
};

}  // namespace sede
