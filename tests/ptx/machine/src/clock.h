// Who knows what: vector clocks of warps and mbarriers, with the lanes of a one-lane release apart.
#pragma once
#include <algorithm>
#include <vector>

#include "numbers.h"

namespace ptx {

constexpr u32 WARPS = 32;        // of a block; their clocks come first
constexpr u32 AGENTS = 128;      // the rest are mbarriers, whose copies write
constexpr u32 CLOCK_BITS = 25, CLOCK_MASK = (1u << CLOCK_BITS) - 1;
constexpr u32 NEVER = 0xffffffffu;
constexpr u8 COLLECTIVE = 32;    // a lane number: the whole warp at once (ldmatrix, wgmma)
constexpr u8 MANY = 33;          // several lanes, each by itself
constexpr u8 ATOMIC = 34;        // an atomic operation: ordered with everything

// A write: agent and its clock in one word.
inline u32 stamp(u32 agent, u32 clock) { return agent << CLOCK_BITS | clock; }
inline u32 agent_of(u32 stamp) { return stamp >> CLOCK_BITS; }
inline u32 clock_of(u32 stamp) { return stamp & CLOCK_MASK; }

// What was done by agent a up to clock all[a] is known; up to some[a] only what lanes[a] did.
struct Clock {
  u32 all[AGENTS] = {};
  u32 some[WARPS] = {};
  u32 lanes[WARPS] = {};

  bool covers(u32 agent, u32 clock, u32 lane) const {
    if (all[agent] >= clock) return true;
    if (agent >= WARPS || some[agent] < clock) return false;
    if (lane == COLLECTIVE) return lanes[agent] != 0;
    return lane < 32 && (lanes[agent] >> lane & 1);
  }
  void join(const Clock& other) {
    for (u32 a = 0; a < AGENTS; a++) all[a] = std::max(all[a], other.all[a]);
    for (u32 a = 0; a < WARPS; a++) {
      if (other.some[a] == some[a]) lanes[a] |= other.lanes[a];
      if (other.some[a] > some[a]) {
        some[a] = other.some[a];
        lanes[a] = other.lanes[a];
      }
    }
  }
  // Only the lanes of a mask speak: what other lanes did after `synced` stays unknown.
  void restrict_to(u32 agent, u32 synced, u32 mask) {
    if (all[agent] <= synced) return;
    some[agent] = all[agent];
    lanes[agent] = mask;
    all[agent] = synced;
  }
};

struct Knowledge {
  Clock seen;   // by ordinary accesses
  Clock async;  // by the async proxy: up to the last fence.proxy.async
  Clock inits;  // mbarrier.init by the async proxy: that or fence.mbarrier_init
  void join(const Knowledge& other) {
    seen.join(other.seen);
    async.join(other.async);
    inits.join(other.inits);
  }
};

}  // namespace ptx
