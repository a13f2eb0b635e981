// Global memory: buffers with bounds, and which blocks touch the same bytes in one launch.
#pragma once
#include <atomic>
#include <mutex>

#include "state.h"

namespace ptx {

struct Region {
  enum Flags : u32 { READ_ONLY = 1, UNWRITTEN = 2 };
  u64 base = 0, size = 0;
  u32 flags = 0;
  std::string name;
  // A byte: the one block (1 + number) that wrote or read it, SEVERAL, or BY_ATOMICS.
  std::atomic<u16>* writer = nullptr;
  std::atomic<u16>* reader = nullptr;
};

struct Regions {
  std::vector<Region> all;  // sorted by base, disjoint
  std::mutex atomics;

  Regions() = default;
  Regions(const Regions&) = delete;
  Regions& operator=(const Regions&) = delete;
  ~Regions() { clear(); }
  void add(u64 base, u64 size, u32 flags, const std::string& name);
  void clear();
  Region* find(u64 address, u64 bytes);
  void report_races(Faults& faults) const;
};

u8* global_read(Warp& w, const Instruction& in, u32 lane, u64 address, u32 bytes);
u8* global_write(Warp& w, const Instruction& in, u32 lane, u64 address, u32 bytes);
u8* global_atomic(Warp& w, const Instruction& in, u32 lane, u64 address, u32 bytes);
// A row of a bulk copy: every byte must be inside one buffer.
u8* global_row(Warp& w, const Instruction& in, u32 lane, u64 address, u32 bytes, bool writes);

// Any space: shared through its window, the rest is global or local.
void load(Warp& w, const Instruction& in, u32 lane, u64 address, u32 bytes, void* value,
          Space space);
void store(Warp& w, const Instruction& in, u32 lane, u64 address, u32 bytes, const void* value,
           Space space);

}  // namespace ptx
