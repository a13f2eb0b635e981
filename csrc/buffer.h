// Uninitialised memory aligned to a cache line. A thread keeps what its last calls gave back: pages that
// the system hands out anew cost a fault each, which small calls feel.
#pragma once

#include "kernels/api.h"

namespace sede {

struct Piece {
  char* data;
  index_t bytes;
};

// At least so many bytes; throws std::bad_alloc.
Piece take_memory(index_t bytes);
void give_back(const Piece& piece);

class Buffer {
 public:
  explicit Buffer(index_t bytes) : piece_(take_memory(bytes)) {}
  ~Buffer() { give_back(piece_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  char* get() const { return piece_.data; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(piece_.data);
  }

 private:
  const Piece piece_;
};

}  // namespace sede
