// mbarrier objects (PTX ISA 9.7.13.15). A phase ends when nobody is missing and its bytes have
// come; the copies of a phase land then, which is as late as the program allows.
#include "families.h"
#include "lanes.h"
#include "shared.h"

namespace ptx {
namespace {

constexpr u32 OBJECT_BYTES = 8;
constexpr u32 EXPECT = 1, ARRIVE = 2, NO_INCREASE = 4, IN_LOOP = 8;

u32 offset(u32 address) { return address - SHARED_BASE; }

// init and inval are ordinary writes; the number only makes the bytes differ from what was there.
bool write_object(Warp& w, const Instruction& in, u32 lane, u32 address) {
  const u64 value = ~u64(address) - u64(w.clock) * 64;
  return shared_write(w, in, lane, address, OBJECT_BYTES, &value);
}

void complete(Warp& w, Mbarrier& b) {
  for (const BulkCopy& copy : b.copies) {
    b.clock++;
    land_tile(*w.block, copy, stamp(b.agent, b.clock));
  }
  b.copies.clear();
  b.phase++;
  b.pending = b.expected;
  b.bytes = 0;
  b.released.join(b.arriving);
  b.arriving = Knowledge();
  b.released.seen.all[b.agent] = b.clock;
  b.released.async.all[b.agent] = b.clock;
}

void arrive(Warp& w, const Instruction& in, Mbarrier& b, u32 count, s64 bytes) {
  if (b.pending == 0 && !try_complete(w, b)) {
    report(w, in, Kind::MBARRIER,
           format("an arrival in a phase that is full and waits for %lld bytes",
                  static_cast<long long>(b.bytes)));
    return;
  }
  b.bytes += bytes;
  if (count > b.pending) {
    report(w, in, Kind::MBARRIER, format("%u arrivals, and %u are missing", count, b.pending));
    count = b.pending;
  }
  b.pending -= count;
}

void init(Warp& w, const Instruction& in, u32 mask) {
  each_lane(mask, [&](u32 l) {
    const u32 address = shared_address(w, in.a, in.offset, l), count = w.at<u32>(in.b)[l];
    if (!write_object(w, in, l, address)) return;
    Block& block = *w.block;
    Mbarrier& b = block.mbarriers[address];
    if (b.live)
      report(w, in, Kind::MBARRIER,
             format("a second init of the live mbarrier at offset %u", offset(address)));
    if (count == 0 || count >= 1u << 20)
      report(w, in, Kind::MBARRIER, format("a count of %u arrivals", count));
    const u32 agent = b.agent ? b.agent : block.next_agent++, clock = b.clock;
    if (agent >= AGENTS) fail(format("more than %u mbarriers", AGENTS - WARPS));
    b = Mbarrier();
    b.live = true;
    b.agent = agent;
    b.clock = clock;
    b.expected = b.pending = count;
  });
}

void invalidate(Warp& w, const Instruction& in, u32 mask) {
  each_lane(mask, [&](u32 l) {
    const u32 address = shared_address(w, in.a, in.offset, l);
    Mbarrier* b = find_mbarrier(w, in, l, address);
    if (!b) return;
    try_complete(w, *b);
    if (!b->copies.empty())
      report(w, in, Kind::MBARRIER, "invalidated while copies are under way");
    write_object(w, in, l, address);
    b->live = false;
  });
}

// b: arrivals, or bytes with .expect_tx
void arrive_lanes(Warp& w, const Instruction& in, u32 mask) {
  const Knowledge news = in.flags & ARRIVE ? w.handed_on(mask) : Knowledge();
  each_lane(mask, [&](u32 l) {
    Mbarrier* b = find_mbarrier(w, in, l, shared_address(w, in.a, in.offset, l));
    if (!b) return;
    const u32 n = in.b.used() ? w.at<u32>(in.b)[l] : 1;
    if (in.flags & ARRIVE) {
      arrive(w, in, *b, in.flags & EXPECT ? 1 : n, in.flags & EXPECT ? s64(n) : 0);
      b->arriving.join(news);
    } else {
      if (b->pending == 0) try_complete(w, *b);
      b->bytes += n;
    }
    if (in.d.used()) w.at<u64>(in.d)[l] = b->phase;
  });
  w.tick();
}

// The copies of the executing lanes land here: the arrival may not come earlier than they.
void copies_arrive(Warp& w, const Instruction& in, u32 mask) {
  land_copies(w, mask, 0, true);
  const Knowledge news = w.handed_on(mask);
  each_lane(mask, [&](u32 l) {
    Mbarrier* b = find_mbarrier(w, in, l, shared_address(w, in.a, in.offset, l));
    if (!b) return;
    if (!(in.flags & NO_INCREASE)) b->pending++;
    arrive(w, in, *b, 1, 0);
    b->arriving.join(news);
  });
  w.tick();
}

}  // namespace

bool try_complete(Warp& w, Mbarrier& b) {
  if (b.pending || b.bytes_in_flight() != b.bytes) return false;
  complete(w, b);
  return true;
}

// Every operation but init and inval is atomic: it only has to know of the init.
Mbarrier* find_mbarrier(Warp& w, const Instruction& in, u32 lane, u32 address) {
  u8 object[OBJECT_BYTES];
  if (!shared_read(w, in, lane, address, OBJECT_BYTES, object)) return nullptr;
  const auto found = w.block->mbarriers.find(address);
  if (found == w.block->mbarriers.end() || !found->second.live) {
    report(w, in, Kind::MBARRIER, format("no live mbarrier at offset %u", offset(address)));
    return nullptr;
  }
  return &found->second;
}

bool phase_done(Warp& w, const Instruction& in, u32 mask, u32 address, u32 parity) {
  Mbarrier* b = find_mbarrier(w, in, first_lane(mask), address);
  if (!b) return true;
  if ((b->phase & 1) == (parity & 1) && !try_complete(w, *b)) return false;
  w.learn(mask, b->released);
  return true;
}

void decode_copies_arrive(Decode& x) {  // cp.async.mbarrier.arrive
  if (!x.has("arrive")) fail("the operation is not supported");
  if (x.has("noinc")) x.in.flags |= NO_INCREASE;
  x.has("shared");
  x.has("shared::cta");
  x.type();
  x.address(0, x.in.a, x.in.offset);
  x.in.run = copies_arrive;
}

void decode_mbarrier(Decode& x) {
  Instruction& in = x.in;
  const Type b32{'b', 4, false}, b64{'b', 8, false};
  x.has("shared");
  x.has("shared::cta");
  for (const char* word : {"b64", "release", "acquire", "relaxed", "cta", "cluster"}) x.has(word);
  if (x.has("init") || x.has("inval")) {
    const bool starts = x.has("init");
    x.address(0, in.a, in.offset);
    if (starts) in.b = x.source(1, b32);
    in.run = starts ? init : invalidate;
  } else if (x.has("try_wait") || x.has("test_wait")) {
    if (!x.has("parity")) fail("only waits by .parity are supported");
    in.d = x.result(0, {'p', 0, false});
    x.address(1, in.a, in.offset);
    in.b = x.source(2, b32);
    in.flags = x.has("try_wait") ? IN_LOOP : 0;
    in.control = Control::WAIT_PHASE;
  } else {
    const bool arrives = x.has("arrive"), expects = x.has("expect_tx");
    if (!arrives && !expects) fail("the operation is not supported");
    in.flags = (arrives ? ARRIVE : 0) | (expects ? EXPECT : 0);
    const u32 first = x.operand(0).kind == Operand::ADDRESS ? 0 : 1;
    if (first) in.d = x.result(0, b64);
    x.address(first, in.a, in.offset);
    if (x.count() > first + 1) in.b = x.source(first + 1, b32);
    in.run = arrive_lanes;
  }
}

}  // namespace ptx
