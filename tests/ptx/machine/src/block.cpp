// A block: its warps in turns, until all are done or none can go on.
#include "lanes.h"

namespace ptx {
namespace {

constexpr u32 LONG_SLICE = 1000000;  // a warp that polls memory lets the others go on

u32 special_value(const Block& b, const std::string& name, u32 warp, u32 lane) {
  const u32 thread = warp * LANES + lane, axis = u32(name.back() - 'x');
  const auto is = [&](const char* prefix) { return name.rfind(prefix, 0) == 0; };
  if (name == "%tid.x") return thread % b.threads[0];
  if (name == "%tid.y") return thread / b.threads[0] % b.threads[1];
  if (name == "%tid.z") return thread / (b.threads[0] * b.threads[1]);
  if (axis < 3) {
    if (is("%ntid.")) return b.threads[axis];
    if (is("%ctaid.")) return b.index[axis];
    if (is("%nctaid.")) return b.grid[axis];
    if (is("%clusterid.")) return b.index[axis];
    if (is("%nclusterid.")) return b.grid[axis];
    if (is("%cluster_ctaid.")) return 0;
    if (is("%cluster_nctaid.")) return 1;
  }
  if (name == "%laneid") return lane;
  if (name == "%warpid") return warp;
  if (name == "%nwarpid") return (b.threads[0] * b.threads[1] * b.threads[2] + 31) / 32;
  if (name == "%smid" || name == "%cluster_ctarank") return 0;
  if (name == "%nsmid" || name == "%cluster_nctarank") return 1;
  if (name == "%lanemask_eq") return 1u << lane;
  if (name == "%lanemask_lt") return (1u << lane) - 1;
  if (name == "%lanemask_le") return (2u << lane) - 1;
  if (name == "%lanemask_gt") return ~((2u << lane) - 1);
  if (name == "%lanemask_ge") return ~((1u << lane) - 1);
  if (is("%clock") || is("%globaltimer")) return 0;
  if (name == "%dynamic_smem_size" || name == "%total_smem_size")
    return b.shared.end - SHARED_BASE;
  fail("the special register " + name + " is not supported");
}

void fill(Warp& w, Slot slot, u64 value) {
  if (slot.bytes == 0) w.predicate(slot) = u32(value);
  else
    for (u32 l = 0; l < LANES; l++) set_bits(w, slot, l, value);
}

u64 symbol_value(const Warp& w, const Kernel::Symbol& s, u32 lane) {
  const Block& b = *w.block;
  const u64 each = round_up(b.kernel->local_bytes, 16);
  const u64 local = round_up(reinterpret_cast<u64>(w.local.data()), 16) + lane * each;
  switch (s.base) {
    case Kernel::Base::DYNAMIC_SHARED:
      return round_up(SHARED_BASE + b.kernel->static_shared, 16) + s.offset;
    case Kernel::Base::LOCAL: return local;
    case Kernel::Base::LOCAL_OFFSET: return s.slot.bytes == 8 ? local + s.offset : s.offset;
    default: break;
  }
  return s.slot.bytes == 8 ? reinterpret_cast<u64>(b.parameters) + s.offset : s.offset;
}

void fill_registers(Warp& w) {
  const Kernel& k = *w.block->kernel;
  for (const Kernel::Constant& c : k.constants) fill(w, c.slot, c.value);
  for (u32 l = 0; l < LANES; l++) {
    for (const Kernel::Special& s : k.specials)
      set_bits(w, s.slot, l, special_value(*w.block, s.name, w.id, l));
    for (const Kernel::Symbol& s : k.symbols) set_bits(w, s.slot, l, symbol_value(w, s, l));
  }
}

void report_deadlock(Block& block) {
  for (const auto& owned : block.warps) {
    Warp& w = *owned;
    std::string text;
    if (w.state == Warp::AT_BARRIER) {
      text = format("waits at barrier %u", w.waits_for);
    } else if (w.state == Warp::AT_REGISTERS) {
      text = format("waits for %u registers a thread, and %lld are free in the block", w.waits_for,
                    static_cast<long long>(block.free_registers));
    } else if (w.state == Warp::AT_PHASE) {
      for (const Group& g : w.groups) {
        if (g.state != Group::PHASE) continue;
        const Mbarrier& b = block.mbarriers[g.mbarrier];
        text = format("waits for the phase of parity %u of the mbarrier at offset %u: %u arrivals "
                      "are missing, %lld bytes are expected and %lld under way", g.parity,
                      g.mbarrier - SHARED_BASE, b.pending, static_cast<long long>(b.bytes),
                      static_cast<long long>(b.bytes_in_flight()));
      }
    } else {
      continue;
    }
    report(w, *w.waits_at, Kind::DEADLOCK, text);
  }
}

}  // namespace

void start_warp(Block& block, u32 id) {
  auto owned = std::make_unique<Warp>();
  Warp& w = *owned;
  const Kernel& k = *block.kernel;
  const u32 threads = block.threads[0] * block.threads[1] * block.threads[2];
  const u32 lanes = std::min(LANES, threads - id * LANES);
  w.block = &block;
  w.id = id;
  w.alive = lanes == LANES ? WHOLE_WARP : (1u << lanes) - 1;
  w.groups.emplace_back(0, w.alive);
  w.file.assign(k.register_bytes / 8 + SLOT_ALIGNMENT / 8, 0xdeadbeefdeadbeefull);
  w.registers = reinterpret_cast<u8*>(
      round_up(reinterpret_cast<u64>(w.file.data()), SLOT_ALIGNMENT));
  const size_t slots = k.register_bytes / SLOT_ALIGNMENT;
  w.busy.assign(slots, 0);
  w.touched.assign(slots, 0);
  w.written_by.assign(slots, 0);
  w.known.seen.all[id] = w.clock;
  if (k.local_bytes) w.local.assign(round_up(k.local_bytes, 16) * LANES + 16, 0xcd);
  fill_registers(w);
  block.warps.push_back(std::move(owned));
}

void Block::run() {
  const u32 count = u32(round_up(threads[0] * threads[1] * threads[2], LANES)) / LANES;
  if (count == 0 || count > WARPS) fail("a block has 1 to 1024 threads");
  shared.reset(shared.end, count);
  ran.assign(kernel->code.size(), 0);
  if (options.histogram) counts.assign(kernel->code.size(), 0);
  for (u32 i = 0; i < count; i++) start_warp(*this, i);
  random.seed(options.seed * 7919 + linear);
  std::vector<u32> order(count);
  for (u32 i = 0; i < count; i++) order[i] = i;
  bool alive = true;
  while (alive) {
    bool progress = false;
    alive = false;
    if (options.seed) std::shuffle(order.begin(), order.end(), random);
    for (u32 i : order) {
      Warp& w = *warps[i];
      if (w.state == Warp::DONE) continue;
      alive = true;
      if (w.state == Warp::AT_BARRIER) continue;
      w.state = Warp::READY;
      const u32 slice = options.slice ? 1 + u32(random() % options.slice) : LONG_SLICE;
      progress |= run_warp(w, slice) || w.state == Warp::DONE;
    }
    if (!alive) continue;
    if (options.step_limit && executed > u64(options.step_limit) * 1000) {
      report(*warps[0], kernel->code[0], Kind::STEP_LIMIT, "the block has not ended");
      break;
    }
    if (progress) continue;
    report_deadlock(*this);
    break;
  }
  for (const auto& m : mbarriers)
    if (m.second.live && !m.second.copies.empty())
      report(*warps[0], *m.second.copies[0].by, Kind::ASYNC_LOST, "nobody waits for this copy");
  if (!alive) check_register_changes(*this);
}

}  // namespace ptx
