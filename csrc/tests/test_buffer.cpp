// Memory that a thread keeps: what is in use is never given out twice, and what came back serves again.
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>

#include "../buffer.h"
#include "check.h"

using namespace sede_test;

namespace {

struct Filled {
  sede::Buffer memory;
  index_t bytes;
  unsigned char mark;

  Filled(index_t size, unsigned char value) : memory(size), bytes(size), mark(value) {
    std::memset(memory.get(), value, std::size_t(size));
  }
  bool whole() const {
    for (index_t n = 0; n < bytes; ++n)
      if (static_cast<unsigned char>(memory.get()[n]) != mark) return false;
    return true;
  }
};

// Buffers of many sizes, beyond what is kept too, come and go in a shuffled order.
void come_and_go(unsigned seed) {
  std::mt19937 engine(seed);
  std::vector<std::unique_ptr<Filled>> used(12);
  const index_t sizes[] = {0, 1, 63, 64, 65, 4096, 100000, 2 << 20, (2 << 20) + 1, 3 << 20};
  for (int step = 0; step < 300; ++step) {
    std::unique_ptr<Filled>& one = used[engine() % used.size()];
    if (one) {
      expect(one->whole(), "a buffer in use holds what was written to it");
      one.reset();
    } else {
      one = std::make_unique<Filled>(sizes[engine() % 10], static_cast<unsigned char>(step));
      expect(reinterpret_cast<std::uintptr_t>(one->memory.get()) % 64 == 0, "buffers are aligned");
    }
  }
  for (const auto& one : used) expect(!one || one->whole(), "the others are untouched");
}

}  // namespace

int main() {
  come_and_go(1);
  std::vector<std::thread> threads;
  for (unsigned seed = 2; seed < 6; ++seed) threads.emplace_back(come_and_go, seed);
  for (std::thread& thread : threads) thread.join();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
