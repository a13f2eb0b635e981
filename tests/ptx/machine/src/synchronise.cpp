// Barriers and fences (PTX ISA 9.7.13), control flow (9.7.12), setmaxnreg (9.7.19).
#include "families.h"
#include "lanes.h"

namespace ptx {

static u32 threads_alive(const Block& block) {
  u32 n = 0;
  for (const auto& w : block.warps) n += w->state == Warp::DONE ? 0 : LANES;
  return n;
}

void try_barrier(Block& block, u32 id) {
  Barrier& b = block.barriers[id];
  if (b.waiting.empty()) return;
  if (b.arrived < (b.expected ? b.expected : threads_alive(block))) return;
  for (Warp* w : b.waiting) {
    w->known.join(b.known);
    w->sync_lanes();
    w->state = Warp::READY;
  }
  b = Barrier();
}

// Threads count by whole warps. a: barrier, b: threads
void arrive_at_barrier(Warp& w, const Instruction& in, u32 mask, bool waits) {
  const u32 lane = first_lane(mask), id = w.at<u32>(in.a)[lane];
  const u32 expected = in.b.used() ? w.at<u32>(in.b)[lane] : 0;
  if (id > 15) {
    report(w, in, Kind::BARRIER, format("barrier %u of 16", id));
    return;
  }
  Barrier& b = w.block->barriers[id];
  if (expected % LANES || (in.b.used() && !expected))
    report(w, in, Kind::BARRIER, format("a barrier of %u threads", expected));
  if (b.arrived && b.expected != expected)
    report(w, in, Kind::BARRIER,
           format("barrier %u with %u threads, others said %u", id, expected, b.expected));
  b.expected = expected;
  b.arrived += LANES;
  b.known.join(w.handed_on(w.alive));
  if (waits) {
    b.waiting.push_back(&w);
    w.state = Warp::AT_BARRIER;
    w.waits_for = id;
    w.waits_at = &in;
  } else {
    w.tick();
  }
  try_barrier(*w.block, id);
}

static u32 launch_registers(const Kernel& k, u32 threads) {
  if (k.most_registers) return k.most_registers;
  const u32 resident = std::max(k.most_threads, threads) * std::max(1u, k.least_blocks);
  return std::min(255u, 65536 / resident / 8 * 8);
}

// The registers of a thread: a warp gives some back, or waits for others to do so.
bool change_registers(Warp& w, const Instruction& in) {
  constexpr u32 GROUP = 4;  // warps of a warpgroup
  Block& block = *w.block;
  const u32 wanted = in.count;
  const bool raises = in.flags;
  const u32 threads = block.threads[0] * block.threads[1] * block.threads[2];
  if (!w.register_count) w.register_count = launch_registers(*block.kernel, threads);
  const auto wrong = [&](const std::string& what) { report(w, in, Kind::REGISTERS, what); };
  if (!block.kernel->most_threads && !block.kernel->most_registers)
    wrong("the kernel declares neither .maxntid nor .maxnreg: its registers are unknown");
  if (wanted < 24 || wanted > 256 || wanted % 8) wrong(format("%u registers", wanted));
  if (raises ? wanted < w.register_count : wanted > w.register_count)
    wrong(format("%s to %u registers of %u", raises ? "raised" : "lowered", wanted,
                 w.register_count));
  const s64 change = (s64(wanted) - s64(w.register_count)) * LANES;
  const s64 more = raises ? std::max<s64>(change, 0) : std::min<s64>(change, 0);
  if (more > block.free_registers) {
    w.state = Warp::AT_REGISTERS;
    w.waits_at = &in;
    w.waits_for = wanted;
    return false;
  }
  block.free_registers -= more;
  w.register_count = wanted;
  w.register_changes.push_back(in.line);
  if ((w.id / GROUP + 1) * GROUP * LANES > round_up(threads, LANES))
    wrong("the last warpgroup is not whole");
  return true;
}

// Every warp of a warpgroup executes the same setmaxnreg.
void check_register_changes(Block& block) {
  for (size_t i = 0; i + 1 < block.warps.size(); i++) {
    Warp &a = *block.warps[i], &b = *block.warps[i + 1];
    if (a.id / 4 == b.id / 4 && a.register_changes != b.register_changes)
      report(b, block.kernel->code.back(), Kind::REGISTERS,
             format("warps %u and %u of a warpgroup execute different setmaxnreg", a.id, b.id));
  }
}

namespace {

void sync_warp(Warp& w, const Instruction&, u32) { w.sync_lanes(); }

void make_async_aware(Warp& w, const Instruction& in, u32 mask) {
  const Knowledge now = w.handed_on(mask);
  if (in.mode == 0) w.known.async.join(now.seen);
  w.known.inits.join(now.seen);
}

void no_effect(Warp&, const Instruction&, u32) {}

void trap(Warp&, const Instruction& in, u32) { fail(format("line %u: trap", in.line)); }

}  // namespace

void decode_bar(Decode& x) {
  Instruction& in = x.in;
  const Type u32_type{'u', 4, false};
  if (x.has("warp")) {
    if (!x.has("sync")) fail("the operation is not supported");
    in.converge = Converge::MEMBERS;
    in.members = x.source(0, u32_type);
    in.run = sync_warp;
    return;
  }
  if (x.has("cluster")) fail("clusters are not supported");
  x.has("cta");
  x.has("aligned");
  const bool arrives = x.has("arrive");
  if (!arrives && !x.has("sync")) fail("the operation is not supported");
  in.control = arrives ? Control::BARRIER_ARRIVE : Control::BARRIER;
  in.converge = Converge::WARP;
  in.a = x.source(0, u32_type);
  if (x.count() > 1) in.b = x.source(1, u32_type);
  if (arrives && !in.b.used()) fail("the number of threads is missing");
}

void decode_fence(Decode& x) {
  const bool proxy = x.has("proxy"), async = x.has("async"), init = x.has("mbarrier_init");
  x.ignore({"async::", "tensormap", "alias", "acquire", "release", "acq_rel", "sc", "gpu", "gl",
            "cta", "sys", "cluster", "global", "shared", "sync_restrict"});
  bool to_async = proxy && async;
  for (const std::string& part : x.parts) to_async = to_async || part.rfind("async::", 0) == 0;
  x.in.run = no_effect;
  if (!to_async && !init) return;
  x.in.mode = init ? 1 : 0;
  x.in.run = make_async_aware;
}

void decode_bra(Decode& x) {
  x.has("uni");
  x.in.control = Control::BRANCH;
}

void decode_exit(Decode& x) {
  x.has("uni");
  x.in.control = Control::EXIT;
}

void decode_trap(Decode& x) { x.in.run = trap; }

void decode_setmaxnreg(Decode& x) {
  const bool raises = x.has("inc");
  if ((!raises && !x.has("dec")) || !x.has("sync") || !x.has("aligned"))
    fail(".inc or .dec and .sync.aligned are expected");
  x.type();
  x.in.count = u32(x.number(0));
  x.in.flags = raises;
  x.in.control = Control::SET_REGISTERS;
  x.in.converge = Converge::WARP;
}

void decode_no_effect(Decode& x) {
  x.ignore({""});
  x.in.run = no_effect;
}

}  // namespace ptx
