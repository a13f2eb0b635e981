// Passes over a bank or a batch: which kernels, how many blocks, where what lies in the scratch.
#pragma once

#include <algorithm>
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
    most_ = std::max(most_, used_);
    return reinterpret_cast<T*>(piece);
  }
  bool counting() const { return base_ == nullptr; }
  index_t used() const { return used_; }
  // What was taken since then is free for the launches that follow.
  void release(index_t used) { used_ = used; }
  index_t most() const { return most_; }

 private:
  char* base_;
  index_t used_ = 0, most_ = 0;
};

// A bank with its queries and results.
struct BankSide {
  Matrix query, bank;
  const float* row_scale;  // of an int8 bank
  Match match;
  Sums out;
  bool further = false;  // is searched for what `further` of Passes wants
  Matrix key = {};       // the limits are s+ + margin of these; or of no address

  bool limited() const { return match.limit != nullptr || key.data != nullptr; }
};

// Passes over banks; those of one shape share a launch.
struct Passes {
  std::vector<BankSide> sides;
  Want want, further;
  Number margin;
  bool tf32;  // fp32 may be multiplied in tf32

  const Want& of(const BankSide& side) const { return side.further ? further : want; }
};

inline index_t blocks(index_t size, index_t block) { return (size + block - 1) / block; }

// How a bank is split: tiles of every part but the last, and how many parts.
struct Parts {
  int tiles, count;
};

// About `split` parts, each of at least `fewest` tiles where there are two of them.
Parts parts_of(index_t tiles, index_t split, index_t fewest);

// Memory for what a pass of so many parts finds.
Partial partial(Scratch& scratch, int parts, index_t rows, index_t dim, const Want& want);

// Whether a pass need not look for the largest similarity.
bool has_fixed_peak(const BankSide& side, const Want& want);

// Parts of the pass over each bank. Launches nothing while the scratch is only counted.
std::vector<Partial> bank_pass(const Passes& passes, Scratch& scratch, Stream stream);

// The pass over one or two banks of one shape. Returns the bytes of scratch it needs, and runs when
// it gets them.
index_t bank_lse(const std::vector<BankSide>& sides, const Want& want, bool tf32, void* scratch,
                 Stream stream);

// How many similarities go to memory at a time, but of at least so many columns. For tests.
void set_chunk(index_t elements, index_t columns);

// One or two sides' gradients through the keys of the batch, of one dtype.
struct BatchGradient {
  Gradients of;  // of all keys; where the weights go is left to the pass
  int sides;
  float *query_grad[2], *key_grad[2];
};

// Two launches a chunk of keys.
void batch_lse_backward(const BatchGradient& op, Scratch& scratch, Stream stream);

index_t hardest(const Matrix& query, const Matrix& bank, const float* row_scale,
                const Match& match, int k, float* values, index_t* indices, void* scratch,
                Stream stream);

}  // namespace sede_cuda
