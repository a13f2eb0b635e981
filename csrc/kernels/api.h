// What the kernels offer to the drivers: plain structs and one table of functions per instruction
// set. Every kernel file is compiled once per instruction set inside its own namespace (SEDE_ISA).
#pragma once

#include <cstdint>
#include <type_traits>

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

// Bytes a thread needs beyond the packed query, for tiles of `bank_rows` x `dim` and `queries`.
struct ScratchBytes {
  index_t bank, panels;
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

}  // namespace sede
