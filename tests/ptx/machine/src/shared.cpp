#include "shared.h"

namespace ptx {

void SharedMemory::reset(u32 new_end, u32 warps) {
  end = new_end;
  bytes.assign(end, 0xff);
  writer.assign(end, NEVER);
  lane.assign(end, MANY);
  in_flight.assign(end, 0);
  being_read.assign(end, 0);
  reads.resize(warps);
  for (std::vector<u32>& r : reads) r.assign(end, 0);
}

bool is_shared(u64 generic_address) {
  return generic_address >= SHARED_WINDOW && generic_address < SHARED_WINDOW + (u64(1) << 24);
}

namespace {

u32 offset(u32 address) { return address - SHARED_BASE; }

bool inside(Warp& w, const Instruction& in, u32 lane, u32 address, u32 bytes, bool writes) {
  const u32 end = w.block->shared.end;
  const char* verb = writes ? "writes" : "reads";
  if (address < SHARED_BASE || address > end || bytes > end - address) {
    report(w, in, Kind::SHARED_BOUNDS,
           format("lane %u %s %u bytes at offset %lld of %u", lane, verb, bytes,
                  static_cast<long long>(address) - SHARED_BASE, offset(end)));
    return false;
  }
  if (bytes <= 16 && address % bytes) {
    report(w, in, Kind::MISALIGNED,
           format("lane %u %s %u bytes at offset %u", lane, verb, bytes, offset(address)));
    return false;
  }
  return true;
}

std::string agent_name(u32 agent) {
  if (agent < WARPS) return format("warp %u", agent);
  return format("the copies of mbarrier %u", agent - WARPS);
}

const char* flight_name(u8 flight) { return flight & BY_THREADS ? "cp.async" : "a bulk copy"; }

// What a read at `at` finds wrong with the last write there.
void check_last_write(Warp& w, const Instruction& in, u32 lane, u32 at, bool async) {
  const SharedMemory& m = w.block->shared;
  const u32 last = m.writer[at], by_lane = m.lane[at];
  if (last == NEVER) {
    if (w.block->options.unwritten)
      report(w, in, Kind::SHARED_UNWRITTEN,
             format("lane %u reads offset %u, which nobody wrote", lane, offset(at)));
    return;
  }
  if (by_lane == ATOMIC) return;
  const u32 agent = agent_of(last), clock = clock_of(last);
  if (agent == w.id) {
    if (clock > w.synced && by_lane != lane && w.block->options.lanes)
      report(w, in, Kind::WARP_RACE,
             format("lane %u reads offset %u, written by lane %u of the warp, with no barrier of "
                    "the warp between", lane, offset(at), by_lane));
  } else if (!w.knows(&Knowledge::seen, agent, clock, by_lane, lane)) {
    report(w, in, Kind::SHARED_RACE,
           format("lane %u reads offset %u, which %s may still write: no barrier between", lane,
                  offset(at), agent_name(agent).c_str()));
  }
  if (async && agent < WARPS && w.block->options.proxies &&
      !w.knows(&Knowledge::async, agent, clock, by_lane, lane))
    report(w, in, Kind::PROXY_FENCE,
           format("the async proxy reads offset %u, written by %s, with no fence.proxy.async "
                  "between", offset(at), agent_name(agent).c_str()));
}

void check_read(Warp& w, const Instruction& in, u32 lane, u32 address, u32 bytes, bool async) {
  const SharedMemory& m = w.block->shared;
  u8 flight = 0;
  for (u32 i = address; i < address + bytes; i++) {
    flight |= m.in_flight[i];
    if (i > address && m.writer[i] == m.writer[i - 1] && m.lane[i] == m.lane[i - 1]) continue;
    check_last_write(w, in, lane, i, async);
  }
  if (flight)
    report(w, in, Kind::ASYNC_EARLY,
           format("lane %u reads offset %u while %s is under way into it", lane, offset(address),
                  flight_name(flight)));
}

// Two numbers that one sum may give in two orders of its additions. Where it cancels, they differ
// by the rounding of its terms: up to that of a term of 1. A subnormal is an integer rather.
bool rounded_apart(u32 x, u32 y) {
  const float a = float_of(x), b = float_of(y);
  if (a == 0.0f || b == 0.0f) {
    const float left = std::fabs(a + b);
    return left == 0.0f || (left > 1e-18f && left < 0x1p-24f);
  }
  if (!std::isnormal(a) || !std::isnormal(b)) return false;
  const s64 steps = s64(s32(x)) - s64(s32(y));
  return std::abs(steps) <= 64 || std::fabs(a - b) < 0x1p-24f;
}

// Another lane of the warp wrote here, with no barrier between: what matters is another value.
void check_lane_conflict(Warp& w, const Instruction& in, u32 lane, u32 address, u32 bytes,
                         const void* value) {
  const SharedMemory& m = w.block->shared;
  const u32 step = std::min(bytes, 4u);
  for (u32 i = 0; i < bytes; i += step) {
    const u32 at = address + i, last = m.writer[at], by_lane = m.lane[at];
    if (last == NEVER || agent_of(last) != w.id || by_lane == ATOMIC) continue;
    if (clock_of(last) <= w.synced || by_lane == lane) continue;
    u32 before = 0, now = 0;
    memcpy(&before, &m.bytes[at], step);
    if (value) memcpy(&now, static_cast<const u8*>(value) + i, step);
    if (value && before == now) continue;
    const bool replica = value && step == 4 && rounded_apart(before, now);
    report(w, in, replica ? Kind::REPLICA_ROUNDING : Kind::WARP_RACE,
           format("lane %u writes offset %u, lane %u another value, with no barrier of the warp "
                  "between (%08x, %08x)", lane, offset(at), by_lane, now, before));
    return;
  }
}

// Write after write; false when a byte was never written.
bool check_overwrite(Warp& w, const Instruction& in, u32 lane, u32 address, u32 bytes,
                     const void* value, bool same, bool engine) {
  const SharedMemory& m = w.block->shared;
  bool written = true, lanes_differ = false;
  for (u32 i = address; i < address + bytes; i++) {
    const u32 last = m.writer[i], by_lane = m.lane[i];
    if (i > address && last == m.writer[i - 1] && by_lane == m.lane[i - 1]) continue;
    if (last == NEVER) written = false;
    if (last == NEVER || same || by_lane == ATOMIC) continue;
    const u32 agent = agent_of(last), clock = clock_of(last);
    if (agent == w.id) {
      lanes_differ = lanes_differ || (clock > w.synced && by_lane != lane);
    } else if (!w.knows(&Knowledge::seen, agent, clock, by_lane, lane)) {
      report(w, in, Kind::SHARED_RACE,
             format("lane %u writes offset %u, which %s writes too: no barrier between", lane,
                    offset(i), agent_name(agent).c_str()));
    }
    if (engine && agent < WARPS && w.block->options.proxies &&
        !w.knows(&Knowledge::async, agent, clock, by_lane, lane))
      report(w, in, Kind::PROXY_FENCE,
             format("a bulk copy writes offset %u, written by %s, with no fence.proxy.async "
                    "between", offset(i), agent_name(agent).c_str()));
  }
  if (lanes_differ && w.block->options.lanes)
    check_lane_conflict(w, in, lane, address, bytes, value);
  return written;
}

// Write after read.
void check_readers(Warp& w, const Instruction& in, u32 lane, u32 address, u32 bytes) {
  const SharedMemory& m = w.block->shared;
  for (u32 u = 0; u < m.reads.size(); u++) {
    const u32* read = &m.reads[u][address];
    u32 latest = 0;
    for (u32 i = 0; i < bytes; i++) latest = std::max(latest, read[i]);
    if (latest >> 6 <= (u == w.id ? w.synced : w.known.seen.all[u])) continue;
    for (u32 i = 0; i < bytes; i++) {
      const u32 clock = read[i] >> 6, by_lane = read[i] & 63;
      if (u == w.id) {
        if (clock <= w.synced || by_lane == lane || !w.block->options.lanes) continue;
        report(w, in, Kind::WARP_RACE,
               format("lane %u writes offset %u, which lane %u of the warp may still read: no "
                      "barrier of the warp between", lane, offset(address + i), by_lane));
      } else {
        if (w.knows(&Knowledge::seen, u, clock, by_lane, lane)) continue;
        report(w, in, Kind::SHARED_RACE,
               format("lane %u writes offset %u, which warp %u may still read: no barrier between",
                      lane, offset(address + i), u));
      }
      break;
    }
  }
}

void check_write(Warp& w, const Instruction& in, u32 lane, u32 address, u32 bytes,
                 const void* value, bool engine) {
  const SharedMemory& m = w.block->shared;
  const bool same = value && memcmp(&m.bytes[address], value, bytes) == 0;
  u8 flight = 0;
  u16 readers = 0;
  for (u32 i = address; i < address + bytes; i++) {
    flight |= m.in_flight[i];
    readers |= m.being_read[i];
  }
  if (flight)
    report(w, in, Kind::ASYNC_OVERLAP,
           format("lane %u writes offset %u while %s is under way into it", lane, offset(address),
                  flight_name(flight)));
  if (readers && !same)
    report(w, in, Kind::ASYNC_OVERWRITE,
           format("lane %u writes offset %u while an unfinished wgmma or bulk store reads it", lane,
                  offset(address)));
  // Layouts that hold an element several times store it several times: equal values do no harm.
  const bool written = check_overwrite(w, in, lane, address, bytes, value, same, engine);
  if (!same || !written) check_readers(w, in, lane, address, bytes);
}

void mark_write(Warp& w, u32 lane, u32 address, u32 bytes) {
  SharedMemory& m = w.block->shared;
  std::fill_n(&m.writer[address], bytes, stamp(w.id, w.clock));
  memset(&m.lane[address], int(lane), bytes);
}

void mark_read(Warp& w, u32 lane, u32 address, u32 bytes) {
  u32* read = &w.block->shared.reads[w.id][address];
  const u32 mine = w.clock << 6 | lane, many = w.clock << 6 | MANY, synced = w.synced << 6 | 63;
  for (u32 i = 0; i < bytes; i++)
    read[i] = read[i] > synced && (read[i] & 63) != lane ? many : mine;
}

}  // namespace

bool shared_read(Warp& w, const Instruction& in, u32 lane, u32 address, u32 bytes, void* value) {
  if (!inside(w, in, lane, address, bytes, false)) {
    memset(value, 0xff, bytes);
    return false;
  }
  check_read(w, in, lane, address, bytes, false);
  mark_read(w, lane, address, bytes);
  memcpy(value, &w.block->shared.bytes[address], bytes);
  return true;
}

bool shared_write(Warp& w, const Instruction& in, u32 lane, u32 address, u32 bytes,
                  const void* value) {
  if (!inside(w, in, lane, address, bytes, true)) return false;
  check_write(w, in, lane, address, bytes, value, false);
  mark_write(w, lane, address, bytes);
  memcpy(&w.block->shared.bytes[address], value, bytes);
  return true;
}

bool shared_begin_read(Warp& w, const Instruction& in, u32 lane, u32 address, u32 bytes) {
  if (!inside(w, in, lane, address, bytes, false)) return false;
  check_read(w, in, lane, address, bytes, true);
  for (u32 i = address; i < address + bytes; i++) w.block->shared.being_read[i]++;
  return true;
}

void shared_end_read(Warp& w, u32 address, u32 bytes) {
  for (u32 i = address; i < address + bytes; i++) w.block->shared.being_read[i]--;
  mark_read(w, COLLECTIVE, address, bytes);
}

bool shared_begin_write(Warp& w, const Instruction& in, u32 lane, u32 address, u32 bytes,
                        Flight by) {
  if (!inside(w, in, lane, address, bytes, true)) return false;
  check_write(w, in, lane, address, bytes, nullptr, by == BY_ENGINE);
  mark_write(w, lane, address, bytes);
  memset(&w.block->shared.bytes[address], 0xff, bytes);
  for (u32 i = address; i < address + bytes; i++) w.block->shared.in_flight[i] |= by;
  return true;
}

u8* shared_atomic(Warp& w, const Instruction& in, u32 lane, u32 address, u32 bytes) {
  if (!inside(w, in, lane, address, bytes, true)) return nullptr;
  SharedMemory& m = w.block->shared;
  if (m.lane[address] != ATOMIC) {
    check_read(w, in, lane, address, bytes, false);
    check_readers(w, in, lane, address, bytes);
  }
  mark_write(w, ATOMIC, address, bytes);
  return &m.bytes[address];
}

}  // namespace ptx
