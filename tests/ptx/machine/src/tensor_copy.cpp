// Copies of the copy engine (PTX ISA 9.7.9.25.5, 9.7.9.27): cp.async.bulk and
// cp.async.bulk.tensor. Loads land when the phase of their mbarrier ends, stores when they are
// waited for.
#include "families.h"
#include "global.h"
#include "lanes.h"
#include "shared.h"
#include "tensor_map.h"

namespace ptx {
namespace {

// The address of row r of the box in global memory; false where it is outside the tensor.
bool row_address(const BulkCopy& copy, u32 r, u64& address) {
  const TensorMap& t = copy.map;
  address = t.base;
  bool inside = true;
  for (u32 d = 1; d < t.rank; d++) {
    const s64 at = s64(copy.at[d]) + r % t.box[d];
    r /= t.box[d];
    if (at < 0 || u64(at) >= t.size[d]) inside = false;
    address += u64(at) * t.stride[d];
  }
  return inside;
}

// The elements of a row that are inside: [first, end) of the box.
void row_range(const BulkCopy& copy, u32& first, u32& end) {
  const s64 at = copy.at[0], size = s64(copy.map.size[0]), box = copy.map.box[0];
  first = u32(std::min(box, std::max<s64>(0, -at)));
  end = u32(std::max<s64>(first, std::min(box, size - at)));
}

// Calls body(address of the first element, bytes, offset in the row, row) where a row is inside.
template <class Body>
void each_row(const BulkCopy& copy, Body body) {
  u32 first, end;
  row_range(copy, first, end);
  if (first >= end) return;
  const u32 element = copy.map.element;
  for (u32 r = 0; r < copy.map.rows(); r++) {
    u64 address;
    if (row_address(copy, r, address))
      body(address + u64(s64(copy.at[0]) + first) * element, (end - first) * element,
           first * element, r);
  }
}

bool coordinates(Warp& w, const Instruction& in, u32 lane, BulkCopy& copy) {
  if (copy.map.rank != in.v[0].count) {
    report(w, in, Kind::TENSOR_MAP,
           format("%u coordinates for a tensor of rank %u", in.v[0].count, copy.map.rank));
    return false;
  }
  for (u32 i = 0; i < in.v[0].count; i++)
    copy.at[i] = w.at<s32>(w.block->kernel->pool[in.v[0].first + i])[lane];
  return true;
}

bool aligned(Warp& w, const Instruction& in, u32 address, u32 to) {
  if (address % to == 0) return true;
  report(w, in, Kind::MISALIGNED,
         format("the copy's shared offset %u is not on %u bytes", address - SHARED_BASE, to));
  return false;
}

// The init of the mbarrier must be known to the copy engine.
void check_init(Warp& w, const Instruction& in, u32 lane, u32 address) {
  const SharedMemory& m = w.block->shared;
  const u32 last = m.writer[address];
  if (last == NEVER || agent_of(last) >= WARPS || !w.block->options.proxies) return;
  if (!w.knows(&Knowledge::inits, agent_of(last), clock_of(last), m.lane[address], lane))
    report(w, in, Kind::INIT_FENCE,
           format("no fence.mbarrier_init or fence.proxy.async between the init of the mbarrier "
                  "at offset %u and this copy", address - SHARED_BASE));
}

void start(Warp& w, const Instruction& in, u32 lane, BulkCopy& copy) {
  const u32 address = shared_address(w, in.c, in.offset_c, lane);
  Mbarrier* b = find_mbarrier(w, in, lane, address);
  if (!b) return;
  check_init(w, in, lane, address);
  if (b->pending == 0 && !b->copies.empty()) try_complete(w, *b);
  bool all = true;
  each_row(copy, [&](u64 from, u32 bytes, u32, u32) {
    all = all && global_row(w, in, lane, from, bytes, false);
  });
  for (u32 i = 0; all && i < copy.bytes; i += 16)
    all = shared_begin_write(w, in, lane, copy.shared + i, 16, BY_ENGINE);
  if (all) b->copies.push_back(copy);
}

// a: destination, b: map, c: mbarrier, v[0]: coordinates
void load_tile(Warp& w, const Instruction& in, u32 mask) {
  each_lane(mask, [&](u32 l) {
    BulkCopy copy{};
    copy.map = read_map(w, in, l, address_at(w, in.b, in.offset_b, l));
    copy.shared = shared_address(w, in.a, in.offset, l);
    copy.by = &in;
    if (!copy.map.valid || !coordinates(w, in, l, copy)) return;
    if (!aligned(w, in, copy.shared, 128)) return;
    copy.bytes = copy.map.rows() * copy.map.row_bytes();
    start(w, in, l, copy);
  });
}

// A run of bytes as a tensor of one row.
TensorMap flat(u64 base, u32 bytes) {
  TensorMap t;
  t.base = base;
  t.size[0] = t.box[0] = bytes;
  t.rank = t.element = 1;
  t.valid = true;
  for (u32 i = 1; i < 5; i++) t.size[i] = t.box[i] = 1;
  return t;
}

// a: destination, b: source, e: bytes, c: mbarrier
void load_bytes(Warp& w, const Instruction& in, u32 mask) {
  each_lane(mask, [&](u32 l) {
    BulkCopy copy{};
    copy.shared = shared_address(w, in.a, in.offset, l);
    copy.bytes = w.at<u32>(in.e)[l];
    copy.by = &in;
    const u64 from = address_at(w, in.b, in.offset_b, l);
    if (from % 16 || copy.bytes % 16) {
      report(w, in, Kind::MISALIGNED, format("%u bytes from %llx", copy.bytes,
                                             static_cast<unsigned long long>(from)));
      return;
    }
    if (!copy.bytes || !aligned(w, in, copy.shared, 16)) return;
    copy.map = flat(from, copy.bytes);
    start(w, in, l, copy);
  });
}

void begin_store(Warp& w, const Instruction& in, u32 lane, BulkCopy& copy) {
  copy.by = &in;
  copy.lane = u8(lane);
  copy.group = w.store_groups[lane];
  for (u32 i = 0; i < copy.bytes; i += 16) {
    if (shared_begin_read(w, in, lane, copy.shared + i, 16)) continue;
    for (u32 done = 0; done < i; done += 16) shared_end_read(w, copy.shared + done, 16);
    return;
  }
  w.stores.push_back(copy);
}

// a: source, b: map, v[0]: coordinates
void store_tile(Warp& w, const Instruction& in, u32 mask) {
  each_lane(mask, [&](u32 l) {
    BulkCopy copy{};
    copy.map = read_map(w, in, l, address_at(w, in.b, in.offset_b, l));
    copy.shared = shared_address(w, in.a, in.offset, l);
    if (!copy.map.valid || !coordinates(w, in, l, copy)) return;
    if (!aligned(w, in, copy.shared, 128)) return;
    copy.bytes = copy.map.rows() * copy.map.row_bytes();
    begin_store(w, in, l, copy);
  });
}

// a: source, b: destination, e: bytes
void store_bytes(Warp& w, const Instruction& in, u32 mask) {
  each_lane(mask, [&](u32 l) {
    BulkCopy copy{};
    copy.shared = shared_address(w, in.a, in.offset, l);
    copy.bytes = w.at<u32>(in.e)[l];
    const u64 to = address_at(w, in.b, in.offset_b, l);
    if (to % 16 || copy.bytes % 16) {
      report(w, in, Kind::MISALIGNED,
             format("%u bytes to %llx", copy.bytes, static_cast<unsigned long long>(to)));
      return;
    }
    if (!copy.bytes || !aligned(w, in, copy.shared, 16)) return;
    copy.map = flat(to, copy.bytes);
    begin_store(w, in, l, copy);
  });
}

// Where byte `at` of the row's bytes lies in shared memory.
u32 shared_place(const BulkCopy& copy, u32 at) {
  return swizzled(copy.shared + (at & ~15u), copy.map.swizzle) + (at & 15);
}

void finish_store(Warp& w, const BulkCopy& copy) {
  const std::vector<u8>& bytes = w.block->shared.bytes;
  each_row(copy, [&](u64 to, u32 length, u32 skip, u32 r) {
    u8* out = global_row(w, *copy.by, copy.lane, to, length, true);
    if (!out) return;
    for (u32 i = 0; i < length; i++)
      out[i] = bytes[shared_place(copy, r * copy.map.row_bytes() + skip + i)];
  });
  for (u32 i = 0; i < copy.bytes; i += 16) shared_end_read(w, copy.shared + i, 16);
}

void commit(Warp& w, const Instruction&, u32 mask) {
  each_lane(mask, [&](u32 l) { w.store_groups[l]++; });
}

void wait(Warp& w, const Instruction& in, u32 mask) {
  size_t kept = 0;
  for (size_t i = 0; i < w.stores.size(); i++) {
    const BulkCopy copy = w.stores[i];
    const bool old = s64(copy.group) < s64(w.store_groups[copy.lane]) - s64(in.count);
    if ((mask >> copy.lane & 1) && old) finish_store(w, copy);
    else w.stores[kept++] = copy;
  }
  w.stores.resize(kept);
}

}  // namespace

void land_tile(Block& block, const BulkCopy& copy, u32 stamp) {
  std::vector<u8> tile(copy.bytes, 0);  // outside the tensor: zeros
  each_row(copy, [&](u64 from, u32 length, u32 skip, u32 r) {
    memcpy(&tile[r * copy.map.row_bytes() + skip], reinterpret_cast<const void*>(from), length);
  });
  for (u32 i = 0; i < copy.bytes; i += 16)
    write_landed(block, swizzled(copy.shared + i, copy.map.swizzle), 16, &tile[i], stamp,
                 COLLECTIVE);
}

void decode_bulk(Decode& x) {
  Instruction& in = x.in;
  if (x.has("commit_group")) {
    in.run = commit;
    return;
  }
  if (x.has("wait_group")) {
    x.has("read");
    in.count = u32(x.number(0));
    in.run = wait;
    return;
  }
  const bool tensor = x.has("tensor");
  const std::string to = x.parts.at(tensor ? 5 : 3);
  for (const char* word : {"1d", "2d", "3d", "4d", "5d", "tile", "global", "shared::cta",
                           "shared::cluster"})
    x.has(word);
  x.ignore({"L2::"});
  if (x.has("mbarrier::complete_tx::bytes")) {
    if (to == "global") fail("the direction is not supported");
    x.address(0, in.a, in.offset);
    if (tensor) {
      const Operand& map = x.operand(1);
      in.v[0] = x.sources(map.parts.at(1), {'b', 4, false});
      x.address(1, in.b, in.offset_b);
      x.address(2, in.c, in.offset_c);
      in.run = load_tile;
    } else {
      x.address(1, in.b, in.offset_b);
      in.e = x.source(2, {'b', 4, false});
      x.address(3, in.c, in.offset_c);
      in.run = load_bytes;
    }
    return;
  }
  if (!x.has("bulk_group") || to != "global") fail("the form is not supported");
  if (tensor) {
    const Operand& map = x.operand(0);
    in.v[0] = x.sources(map.parts.at(1), {'b', 4, false});
    x.address(0, in.b, in.offset_b);
    x.address(1, in.a, in.offset);
    in.run = store_tile;
  } else {
    x.address(0, in.b, in.offset_b);
    x.address(1, in.a, in.offset);
    in.e = x.source(2, {'b', 4, false});
    in.run = store_bytes;
  }
}

}  // namespace ptx
