// What a launch did wrong: collected a block, merged in the order of the blocks.
#pragma once
#include <string>
#include <unordered_map>
#include <vector>

#include "numbers.h"

namespace ptx {

// Kinds of faults. docs/ptx.md says what each one means.
enum class Kind : u8 {
  GLOBAL_BOUNDS, GLOBAL_READONLY, GLOBAL_UNWRITTEN, GLOBAL_RACE,
  SHARED_BOUNDS, SHARED_UNWRITTEN, SHARED_RACE, WARP_RACE, REPLICA_ROUNDING,
  MISALIGNED, ASYNC_EARLY, ASYNC_OVERLAP, ASYNC_OVERWRITE, ASYNC_LOST,
  PROXY_FENCE, INIT_FENCE, WGMMA_FENCE, WGMMA_EARLY, WGMMA_OPERAND, SWIZZLE,
  MBARRIER, BARRIER, CONVERGENCE, SHUFFLE, REGISTERS, TENSOR_MAP, OPERAND,
  DEADLOCK, STEP_LIMIT, COUNT
};
const char* name_of(Kind kind);

struct Fault {
  Kind kind;
  std::string text;
  u64 count = 1;
};

class Faults {
 public:
  // One entry a kind and place; later ones only count.
  void add(Kind kind, u32 place, const std::string& text);
  bool known(Kind kind, u32 place);  // counts it if so: the text need not be made
  void merge(const Faults& other);
  const std::vector<Fault>& all() const { return faults_; }

 private:
  static u64 key(Kind kind, u32 place) { return u64(kind) << 32 | place; }
  std::vector<Fault> faults_;
  std::vector<u64> keys_;
  std::unordered_map<u64, size_t> index_;
};

std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void fail(const std::string& text);

}  // namespace ptx
