// The state of a running block: warps, barriers, shared memory and what is still under way.
#pragma once
#include <deque>
#include <random>

#include "clock.h"
#include "faults.h"
#include "program.h"

namespace ptx {

struct Region;  // global.h
struct Regions;

struct Options {
  u32 seed;        // 0: warps in order, else a random order
  u32 slice;       // 0: until a warp blocks, else up to so many instructions at a time
  u32 unwritten;   // report reads of shared memory that nobody wrote
  u32 lanes;       // report races between the lanes of a warp
  u32 proxies;     // report missing proxy fences
  u32 step_limit;  // thousand instructions a block, 0: none
  u32 threads;     // blocks at a time, 0: one a core
  u32 histogram;   // count instructions by opcode
};

struct CopyAsync {  // cp.async
  u32 to, bytes, take, group;
  u64 from;
  u8 lane;
};

struct TensorMap {  // a decoded one
  u64 base = 0, size[5] = {}, stride[5] = {};
  u32 rank = 0, element = 0, swizzle = 0, fill = 0, box[5] = {};
  bool valid = false;
  u32 row_bytes() const { return box[0] * element; }
  u32 rows() const {
    u32 n = 1;
    for (u32 i = 1; i < rank; i++) n *= box[i];
    return n;
  }
};

struct BulkCopy {  // a copy of the copy engine
  u32 shared, bytes, group = 0;
  TensorMap map;
  s32 at[5] = {};
  u8 lane = 0;
  const Instruction* by = nullptr;
};

struct Wgmma {
  const Instruction* by;
  u32 group;
  bool accumulate;
  std::vector<float> a;               // 16 x K, where A comes from registers
  std::vector<u32> chunks_a, chunks_b;  // addresses of 16 bytes
};

struct Mbarrier {
  bool live = false;
  u32 expected = 0, pending = 0, phase = 0, agent = 0, clock = 0;
  s64 bytes = 0;
  std::vector<BulkCopy> copies;
  Knowledge arriving, released;  // of this phase; of the completed ones
  s64 bytes_in_flight() const {
    s64 n = 0;
    for (const BulkCopy& copy : copies) n += copy.bytes;
    return n;
  }
};

struct Barrier {
  u32 arrived = 0, expected = 0;  // threads
  std::vector<Warp*> waiting;
  Knowledge known;
};

struct Group {  // lanes at one program counter
  enum State : u8 { READY, APART, PHASE } state = READY;  // waits for lanes; for an mbarrier
  u32 pc, mask;
  u32 mbarrier = 0, parity = 0;
  Group(u32 pc, u32 mask) : pc(pc), mask(mask) {}
};

struct Partial {  // what only some lanes have learnt, since the last barrier of the warp
  u32 mask;
  Knowledge known;
};

struct Block;

struct Warp {
  enum State : u8 { READY, AT_BARRIER, AT_PHASE, AT_REGISTERS, DONE };
  Block* block = nullptr;
  u32 id = 0, alive = 0, current = 0;
  State state = READY;
  std::vector<Group> groups;
  std::vector<u64> file;  // registers
  u8* registers = nullptr;
  Knowledge known;
  std::vector<Partial> partial;
  u32 clock = 1, synced = 0;  // synced: the clock of the last barrier of the warp

  std::vector<CopyAsync> copies;
  u32 copy_groups[LANES] = {};
  std::vector<BulkCopy> stores;
  u32 store_groups[LANES] = {};
  std::vector<Wgmma> products;
  u32 product_groups = 0, fences = 0;
  std::vector<u8> busy;      // by register slot: 1 written, 2 read by an unfinished wgmma
  std::vector<u32> touched;  // by register slot: 1 + fences at its last access, for wgmma.fence
  std::vector<u32> written_by;  // by register slot: accumulators: shape of the last wgmma
  std::vector<u32> register_changes;  // setmaxnreg
  u32 register_count = 0;

  const Instruction* waits_at = nullptr;
  u32 waits_for = 0;  // barrier
  std::vector<u8> local;

  template <class T>
  T* at(Slot slot) {
    return reinterpret_cast<T*>(registers + slot.offset);
  }
  u32& predicate(Slot slot) { return *at<u32>(slot); }
  bool knows(const Clock Knowledge::*which, u32 agent, u32 clock, u32 lane_of, u32 me) const {
    if ((known.*which).covers(agent, clock, lane_of)) return true;
    for (const Partial& p : partial)
      if (me < 32 && (p.mask >> me & 1) && (p.known.*which).covers(agent, clock, lane_of))
        return true;
    return false;
  }
  void tick() { known.seen.all[id] = ++clock; }
  // A barrier that orders the lanes of the warp among each other.
  void sync_lanes() {
    for (Partial& p : partial) known.join(p.known);
    partial.clear();
    synced = clock;
    tick();
  }
  // What the lanes of a mask hand on at a release.
  Knowledge handed_on(u32 mask) const {
    Knowledge k = known;
    if (mask == alive) {
      for (const Partial& p : partial)
        if ((p.mask & mask) == mask) k.join(p.known);
      return k;
    }
    for (const Partial& p : partial)
      if (p.mask & mask) k.join(p.known);
    k.seen.restrict_to(id, synced, mask);
    k.async.restrict_to(id, synced, mask);
    k.inits.restrict_to(id, synced, mask);
    return k;
  }
  void learn(u32 mask, const Knowledge& news) {
    if (mask == alive) return known.join(news);
    for (Partial& p : partial)
      if (p.mask == mask) return p.known.join(news);
    partial.push_back({mask, news});
  }
};

struct SharedMemory {
  std::vector<u8> bytes;
  std::vector<u32> writer;         // a byte: stamp of the last write
  std::vector<u8> lane;            // its lane
  std::vector<u8> in_flight;       // 1: cp.async, 2: a bulk copy is still to land here
  std::vector<u16> being_read;     // unfinished wgmma and bulk stores that read it
  std::vector<std::vector<u32>> reads;  // a warp and byte: clock << 6 | lane of the last read
  u32 end = 0;
  void reset(u32 end, u32 warps);
};

struct Block {
  const Kernel* kernel = nullptr;
  const Program* program = nullptr;
  Regions* regions = nullptr;
  Region* recent = nullptr;  // of the last access
  Options options{};
  u32 index[3] = {}, grid[3] = {}, threads[3] = {}, linear = 0;
  u8* parameters = nullptr;
  SharedMemory shared;
  std::vector<std::unique_ptr<Warp>> warps;
  std::map<u32, Mbarrier> mbarriers;
  u32 next_agent = WARPS;
  Barrier barriers[16];
  s64 free_registers = 0;
  Faults faults;
  std::vector<u8> ran;  // by instruction: with a lane at least once
  std::vector<u64> counts;
  u64 executed = 0, lane_executed = 0;
  std::mt19937 random;

  void run();
};

// Reports at an instruction of a warp.
void report(Warp& w, const Instruction& in, Kind kind, const std::string& text);
bool reported(Warp& w, const Instruction& in, Kind kind);

// execute.cpp: runs a warp until it blocks, ends or has used its slice; false: nothing was done.
bool run_warp(Warp& w, u32 slice);
void start_warp(Block& block, u32 id);
// synchronise.cpp
void arrive_at_barrier(Warp& w, const Instruction& in, u32 mask, bool waits);
void try_barrier(Block& block, u32 id);
bool change_registers(Warp& w, const Instruction& in);
void check_register_changes(Block& block);
// mbarrier.cpp
bool phase_done(Warp& w, const Instruction& in, u32 mask, u32 address, u32 parity);
Mbarrier* find_mbarrier(Warp& w, const Instruction& in, u32 lane, u32 address);
bool try_complete(Warp& w, Mbarrier& b);
// async_copy.cpp
void land_copies(Warp& w, u32 lanes, u32 keep, bool all);
void write_landed(Block& block, u32 address, u32 bytes, const void* value, u32 stamp, u8 lane);
// tensor_copy.cpp
void land_tile(Block& block, const BulkCopy& copy, u32 stamp);
// wgmma.cpp
void check_products(Warp& w, const Instruction& in);

}  // namespace ptx
