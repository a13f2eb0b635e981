#include "global.h"

#include <cstdlib>

#include "shared.h"

namespace ptx {
namespace {

constexpr u16 SEVERAL = 0xffff, BY_ATOMICS = 0xfffe;
constexpr u32 BLOCK_NUMBERS = 0xfffd;  // more blocks share a number: a race between them is missed

u16 number_of(const Block& block) { return u16(1 + block.linear % BLOCK_NUMBERS); }

void mark(std::atomic<u16>& cell, u16 who) {
  u16 before = cell.load(std::memory_order_relaxed);
  while (before != who && before != SEVERAL) {
    const u16 after = before == 0 ? who : SEVERAL;
    if (cell.compare_exchange_weak(before, after, std::memory_order_relaxed)) return;
  }
}

std::atomic<u16>* zeroed(u64 cells) {  // pages that are never touched cost nothing
  auto* memory = static_cast<std::atomic<u16>*>(calloc(cells, sizeof(std::atomic<u16>)));
  if (!memory) fail("no memory for the record of global accesses");
  return memory;
}

bool is_local(const Warp& w, u64 address, u64 bytes) {
  const u64 base = reinterpret_cast<u64>(w.local.data()), size = w.local.size();
  return size && address >= base && bytes <= size && address - base <= size - bytes;
}

void report_outside(Warp& w, const Instruction& in, u32 lane, u64 address, u64 bytes, bool writes) {
  if (reported(w, in, Kind::GLOBAL_BOUNDS)) return;
  std::string nearest = "no buffer is near";
  u64 distance = ~u64(0);
  for (const Region& r : w.block->regions->all) {
    const bool before = address < r.base;
    const u64 gap = before ? r.base - address : address - r.base - r.size;
    if (gap >= distance) continue;
    distance = gap;
    nearest = format("%llu bytes %s '%s' of %llu bytes", static_cast<unsigned long long>(gap),
                     before ? "before" : "after the end of", r.name.c_str(),
                     static_cast<unsigned long long>(r.size));
  }
  report(w, in, Kind::GLOBAL_BOUNDS,
         format("lane %u %s %llu bytes at %llx: %s", lane, writes ? "writes" : "reads",
                static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(address),
                nearest.c_str()));
}

// The buffer of an access, or null after a report; local memory gives null and sets `local`.
Region* region_of(Warp& w, const Instruction& in, u32 lane, u64 address, u64 bytes, bool writes,
                  bool& local) {
  local = false;
  if (bytes <= 16 && (bytes & (bytes - 1)) == 0 && address % bytes) {
    report(w, in, Kind::MISALIGNED,
           format("lane %u: %llu bytes at %llx", lane, static_cast<unsigned long long>(bytes),
                  static_cast<unsigned long long>(address)));
    return nullptr;
  }
  Block& block = *w.block;
  Region* r = block.recent;
  if (!r || address < r->base || bytes > r->size || address - r->base > r->size - bytes) {
    if (is_local(w, address, bytes)) {
      local = true;
      return nullptr;
    }
    r = block.regions->find(address, bytes);
    if (!r) {
      report_outside(w, in, lane, address, bytes, writes);
      return nullptr;
    }
    block.recent = r;
  }
  if (writes && (r->flags & Region::READ_ONLY)) {
    report(w, in, Kind::GLOBAL_READONLY,
           format("lane %u writes to the input '%s'", lane, r->name.c_str()));
    return nullptr;
  }
  return r;
}

u16 who_accesses(const Warp& w, const Instruction& in) {
  return in.flags & ORDERED ? BY_ATOMICS : number_of(*w.block);
}

u8* access(Warp& w, const Instruction& in, u32 lane, u64 address, u64 bytes, bool writes,
           u16 who) {
  bool local = false;
  Region* r = region_of(w, in, lane, address, bytes, writes, local);
  if (local) return reinterpret_cast<u8*>(address);
  if (!r) return nullptr;
  if (r->writer) {
    const u64 at = address - r->base;
    std::atomic<u16>* cells = writes ? r->writer : r->reader;
    if (!writes && (r->flags & Region::UNWRITTEN))
      for (u64 i = at; i < at + bytes; i++)
        if (r->writer[i].load(std::memory_order_relaxed) == 0) {
          report(w, in, Kind::GLOBAL_UNWRITTEN,
                 format("lane %u reads '%s' at byte %llu, which nobody wrote", lane,
                        r->name.c_str(), static_cast<unsigned long long>(i)));
          break;
        }
    for (u64 i = at; i < at + bytes; i++)
      if (cells[i].load(std::memory_order_relaxed) != who) mark(cells[i], who);
  }
  return reinterpret_cast<u8*>(address);
}

}  // namespace

void Regions::add(u64 base, u64 size, u32 flags, const std::string& name) {
  Region r;
  r.base = base;
  r.size = size;
  r.flags = flags;
  r.name = name;
  if (!(flags & Region::READ_ONLY) && size) {
    r.writer = zeroed(size);
    r.reader = zeroed(size);
  }
  all.insert(std::upper_bound(all.begin(), all.end(), base,
                              [](u64 address, const Region& q) { return address < q.base; }), r);
}

void Regions::clear() {
  for (Region& r : all) {
    free(static_cast<void*>(r.writer));
    free(static_cast<void*>(r.reader));
  }
  all.clear();
}

Region* Regions::find(u64 address, u64 bytes) {
  auto after = std::upper_bound(all.begin(), all.end(), address,
                                [](u64 a, const Region& q) { return a < q.base; });
  if (after == all.begin()) return nullptr;
  Region& r = *(after - 1);
  return bytes <= r.size && address - r.base <= r.size - bytes ? &r : nullptr;
}

void Regions::report_races(Faults& faults) const {
  u32 place = 0;
  for (const Region& r : all) {
    place++;
    if (!r.writer) continue;
    u64 several = 0, read = 0, first_several = 0, first_read = 0;
    for (u64 i = 0; i < r.size; i++) {
      const u16 writer = r.writer[i].load(std::memory_order_relaxed);
      if (writer == 0 || writer == BY_ATOMICS) continue;
      const u16 reader = r.reader[i].load(std::memory_order_relaxed);
      if (writer == SEVERAL && several++ == 0) first_several = i;
      const bool foreign = reader != 0 && reader != BY_ATOMICS && reader != writer;
      if (writer != SEVERAL && foreign && read++ == 0) first_read = i;
    }
    auto add = [&](u64 bytes, u64 first, const char* what, u32 which) {
      if (bytes)
        faults.add(Kind::GLOBAL_RACE, place * 2 + which,
                   format("[global-race] %s %llu bytes of '%s', the first at byte %llu", what,
                          static_cast<unsigned long long>(bytes), r.name.c_str(),
                          static_cast<unsigned long long>(first)));
    };
    add(several, first_several, "several blocks write", 0);
    add(read, first_read, "one block writes and others read", 1);
  }
}

u8* global_read(Warp& w, const Instruction& in, u32 lane, u64 address, u32 bytes) {
  return access(w, in, lane, address, bytes, false, who_accesses(w, in));
}

u8* global_write(Warp& w, const Instruction& in, u32 lane, u64 address, u32 bytes) {
  return access(w, in, lane, address, bytes, true, who_accesses(w, in));
}

u8* global_atomic(Warp& w, const Instruction& in, u32 lane, u64 address, u32 bytes) {
  return access(w, in, lane, address, bytes, true, BY_ATOMICS);
}

u8* global_row(Warp& w, const Instruction& in, u32 lane, u64 address, u32 bytes, bool writes) {
  bool local = false;
  const u16 who = number_of(*w.block);
  if (bytes <= 16) {  // no alignment of the whole row is asked for
    for (u32 i = 0; i < bytes; i++)
      if (!access(w, in, lane, address + i, 1, writes, who)) return nullptr;
    return reinterpret_cast<u8*>(address);
  }
  if (!region_of(w, in, lane, address, bytes, writes, local)) return nullptr;
  return access(w, in, lane, address, bytes, writes, who);
}

void load(Warp& w, const Instruction& in, u32 lane, u64 address, u32 bytes, void* value,
          Space space) {
  if (space == Space::SHARED || (space == Space::GENERIC && is_shared(address))) {
    if (space == Space::GENERIC) address -= SHARED_WINDOW;
    shared_read(w, in, lane, u32(address), bytes, value);
    return;
  }
  const u8* from = global_read(w, in, lane, address, bytes);
  if (from) memcpy(value, from, bytes);
  else memset(value, 0xff, bytes);
}

void store(Warp& w, const Instruction& in, u32 lane, u64 address, u32 bytes, const void* value,
           Space space) {
  if (space == Space::SHARED || (space == Space::GENERIC && is_shared(address))) {
    if (space == Space::GENERIC) address -= SHARED_WINDOW;
    shared_write(w, in, lane, u32(address), bytes, value);
    return;
  }
  u8* to = global_write(w, in, lane, address, bytes);
  if (to) memcpy(to, value, bytes);
}

}  // namespace ptx
