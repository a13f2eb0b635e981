// cp.async (PTX ISA 9.7.9.25). The bytes land at the wait that waits for them, not before; until
// then the destination is poison.
#include "families.h"
#include "global.h"
#include "lanes.h"
#include "shared.h"

namespace ptx {

void write_landed(Block& block, u32 address, u32 bytes, const void* value, u32 stamp, u8 lane) {
  SharedMemory& m = block.shared;
  memcpy(&m.bytes[address], value, bytes);
  std::fill_n(&m.writer[address], bytes, stamp);
  memset(&m.lane[address], lane, bytes);
  memset(&m.in_flight[address], 0, bytes);
}

void land_copies(Warp& w, u32 lanes, u32 keep, bool all) {
  size_t kept = 0;
  for (size_t i = 0; i < w.copies.size(); i++) {
    const CopyAsync copy = w.copies[i];
    const bool old = s64(copy.group) < s64(w.copy_groups[copy.lane]) - s64(keep);
    if (!(lanes >> copy.lane & 1) || !(all || old)) {
      w.copies[kept++] = copy;
      continue;
    }
    u8 value[16] = {};
    if (copy.take) memcpy(value, reinterpret_cast<const void*>(copy.from), copy.take);
    write_landed(*w.block, copy.to, copy.bytes, value, stamp(w.id, w.clock), copy.lane);
  }
  w.copies.resize(kept);
}

namespace {

// a: destination, b: source, c: bytes to take; the rest of width bytes becomes zero.
void copy_async(Warp& w, const Instruction& in, u32 mask) {
  each_lane(mask, [&](u32 l) {
    const u32 to = shared_address(w, in.a, in.offset, l);
    const u64 from = address_at(w, in.b, in.offset_b, l);
    u32 take = in.c.used() ? w.at<u32>(in.c)[l] : in.width;
    if (take > in.width) {
      report(w, in, Kind::OPERAND, format("lane %u takes %u of %u bytes", l, take, in.width));
      take = in.width;
    }
    if (take && from % in.width) {
      report(w, in, Kind::MISALIGNED, format("lane %u copies %u bytes from %llx", l, in.width,
                                             static_cast<unsigned long long>(from)));
      take = 0;
    }
    if (take && !global_row(w, in, l, from, take, false)) take = 0;
    if (shared_begin_write(w, in, l, to, in.width, BY_THREADS))
      w.copies.push_back({to, in.width, take, w.copy_groups[l], from, u8(l)});
  });
}

void commit(Warp& w, const Instruction&, u32 mask) {
  each_lane(mask, [&](u32 l) { w.copy_groups[l]++; });
}

void wait(Warp& w, const Instruction& in, u32 mask) {
  if (!w.copies.empty()) land_copies(w, mask, in.count, in.flags);
}

}  // namespace

void decode_cp(Decode& x) {
  Instruction& in = x.in;
  if (!x.has("async")) fail("only cp.async is supported");
  if (x.has("bulk")) return decode_bulk(x);
  if (x.has("mbarrier")) return decode_copies_arrive(x);
  if (x.has("commit_group")) {
    in.run = commit;
    return;
  }
  const bool all = x.has("wait_all");
  if (all || x.has("wait_group")) {
    in.flags = all;
    in.count = all ? 0 : u32(x.number(0));
    in.run = wait;
    return;
  }
  const bool around_l1 = x.has("cg");
  if ((!around_l1 && !x.has("ca")) || x.space() != Space::GLOBAL) fail("the form is not supported");
  x.has("shared");
  x.has("shared::cta");
  x.ignore({"L2::"});
  x.address(0, in.a, in.offset);
  x.address(1, in.b, in.offset_b);
  in.width = u32(x.number(2));
  if (in.width != 16 && (around_l1 || (in.width != 4 && in.width != 8)))
    fail(format("copies of %u bytes are not supported", in.width));
  if (x.count() > 3) in.c = x.source(3, {'u', 4, false});
  in.run = copy_async;
}

}  // namespace ptx
