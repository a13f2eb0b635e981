// Passes over a bank or a batch: which kernels, how many blocks, where what lies in the scratch.
#pragma once

#include <vector>

#include "../args.h"
#include "driver.h"

namespace sede_cuda {

// Hands out pieces of one allocation; without one it only counts.
class Scratch {
 public:
  explicit Scratch(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(index_t elements) {
    char* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (elements * index_t(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(piece);
  }
  index_t used() const { return used_; }

 private:
  char* base_;
  index_t used_ = 0;
};

// A bank with its queries and results.
struct BankSide {
  Matrix query, bank;
  const float* row_scale;  // of an int8 bank
  Match match;
  Sums out;
};

// The pass over one or two banks of one shape. Returns the bytes of scratch it needs, and runs when
// it gets them.
index_t bank_lse(const std::vector<BankSide>& sides, const Want& want, void* scratch,
                 Stream stream);

// How many similarities go to memory at a time, but of at least so many columns. For tests.
void set_chunk(index_t elements, index_t columns);

struct BatchGradient {
  Matrix query, key;
  Match match;
  const float *scales, *lse, *grad;
  int exponents;
  float *query_grad, *key_grad;
};

index_t batch_lse_backward(const BatchGradient& op, void* scratch, Stream stream);

index_t hardest(const Matrix& query, const Matrix& bank, const float* row_scale,
                const Match& match, int k, float* values, index_t* indices, void* scratch,
                Stream stream);

}  // namespace sede_cuda
