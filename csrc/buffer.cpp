#include "buffer.h"

#include <cstdlib>
#include <new>

namespace sede {
namespace {

// Sanitizers see the bounds and the end of a buffer only where it is memory of its own.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kKeeps = false;
#else
constexpr bool kKeeps = true;
#endif
constexpr int kPieces = 8;
constexpr index_t kLargest = (index_t(2) << 20) + 64, kMost = index_t(4) << 20;  // bytes: of one, all

// What a thread keeps, the oldest first.
class Kept {
 public:
  ~Kept() {
    while (count_ > 0) remove_oldest();
    open_ = false;  // a buffer that outlives it is freed at once
  }

  // The smallest piece of at least so many bytes; one without memory where there is none.
  Piece take(index_t bytes) {
    int best = -1;
    for (int n = 0; n < count_; ++n)
      if (pieces_[n].bytes >= bytes && (best < 0 || pieces_[n].bytes < pieces_[best].bytes)) best = n;
    return best < 0 ? Piece{nullptr, 0} : remove(best);
  }

  bool give(const Piece& piece) {
    if (!open_ || piece.bytes > kLargest) return false;
    while (count_ == kPieces || bytes_ + piece.bytes > kMost) remove_oldest();
    pieces_[count_++] = piece;
    bytes_ += piece.bytes;
    return true;
  }

 private:
  Piece remove(int at) {
    const Piece found = pieces_[at];
    for (int n = at; n + 1 < count_; ++n) pieces_[n] = pieces_[n + 1];
    --count_;
    bytes_ -= found.bytes;
    return found;
  }
  void remove_oldest() { std::free(remove(0).data); }

  Piece pieces_[kPieces];
  int count_ = 0;
  index_t bytes_ = 0;
  bool open_ = kKeeps;
};

thread_local Kept kept;

}  // namespace

Piece take_memory(index_t bytes) {
  bytes = (bytes + 127) / 64 * 64;
  Piece piece = kept.take(bytes);
  if (!piece.data)
    piece = {static_cast<char*>(std::aligned_alloc(64, static_cast<std::size_t>(bytes))), bytes};
  if (!piece.data) throw std::bad_alloc();
  return piece;
}

void give_back(const Piece& piece) {
  if (!kept.give(piece)) std::free(piece.data);
}

}  // namespace sede
