// Exchange between the lanes of a warp: shfl.sync (PTX ISA 9.7.9), vote, redux, elect, match,
// activemask (9.7.13).
#include "families.h"
#include "lanes.h"

namespace ptx {
namespace {

enum Shuffle : u32 { UP, DOWN, BUTTERFLY, INDEX };

// b: lane or distance, c: clamp and segment mask
void shuffle(Warp& w, const Instruction& in, u32 mask) {
  u32 value[LANES], inside = 0;
  memcpy(value, w.at<u32>(in.a), sizeof value);
  u32* d = in.d.used() ? w.at<u32>(in.d) : nullptr;
  const u32 *b = w.at<u32>(in.b), *c = w.at<u32>(in.c);
  each_lane(mask, [&](u32 l) {
    const u32 by = b[l] & 31, clamp = c[l] & 31, segment = c[l] >> 8 & 31;
    const s32 last = s32((l & segment) | (clamp & ~segment)), lane = s32(l);
    s32 from = lane;
    bool in_range = false;
    switch (in.mode) {
      case UP:
        from = lane - s32(by);
        in_range = from >= last;
        break;
      case DOWN:
        from = lane + s32(by);
        in_range = from <= last;
        break;
      case BUTTERFLY:
        from = lane ^ s32(by);
        in_range = from <= last;
        break;
      default:
        from = s32((l & segment) | (by & ~segment));
        in_range = from <= last;
    }
    if (!in_range) from = lane;
    if (!(mask >> from & 1))
      report(w, in, Kind::SHUFFLE,
             format("lane %u reads lane %d, which does not take part", l, from));
    if (d) d[l] = value[from];
    inside |= u32(in_range) << l;
  });
  set_predicate(w, in.e, mask, inside);
}

enum Reduction : u32 { ADD, MIN, MAX, AND, OR, XOR };

void reduce(Warp& w, const Instruction& in, u32 mask) {
  const u32* a = w.at<u32>(in.a);
  u32 r = a[first_lane(mask)];
  const u32 rest = mask & (mask - 1);
  each_lane(rest, [&](u32 l) {
    const u32 v = a[l];
    const bool less = in.type == 's' ? s32(v) < s32(r) : v < r;
    switch (in.mode) {
      case ADD: r += v; break;
      case MIN: r = less ? v : r; break;
      case MAX: r = less ? r : v; break;
      case AND: r &= v; break;
      case OR: r |= v; break;
      default: r ^= v;
    }
  });
  u32* d = w.at<u32>(in.d);
  each_lane(mask, [&](u32 l) { d[l] = r; });
}

enum Vote : u32 { ANY, ALL, UNIFORM, BALLOT };

void vote(Warp& w, const Instruction& in, u32 mask) {
  const u32 p = (in.flags ? ~w.predicate(in.a) : w.predicate(in.a)) & mask;
  if (in.mode == BALLOT) {
    u32* d = w.at<u32>(in.d);
    each_lane(mask, [&](u32 l) { d[l] = p; });
    return;
  }
  const bool holds = in.mode == ANY ? p != 0 : in.mode == ALL ? p == mask : p == mask || p == 0;
  set_predicate(w, in.d, mask, holds ? WHOLE_WARP : 0);
}

void elect(Warp& w, const Instruction& in, u32 mask) {
  const u32 leader = first_lane(mask);
  if (in.d.used()) {
    u32* d = w.at<u32>(in.d);
    each_lane(mask, [&](u32 l) { d[l] = leader; });
  }
  set_predicate(w, in.e, mask, 1u << leader);
}

void match(Warp& w, const Instruction& in, u32 mask) {
  u32 result[LANES];
  each_lane(mask, [&](u32 l) {
    const u64 mine = bits_at(w, in.a, l);
    u32 same = 0;
    each_lane(mask, [&](u32 other) { same |= u32(bits_at(w, in.a, other) == mine) << other; });
    result[l] = in.mode == ALL && same != mask ? 0 : same;
  });
  u32* d = w.at<u32>(in.d);
  each_lane(mask, [&](u32 l) { d[l] = result[l]; });
  set_predicate(w, in.e, mask, result[first_lane(mask)] == mask ? WHOLE_WARP : 0);
}

void active(Warp& w, const Instruction& in, u32 mask) {
  u32* d = w.at<u32>(in.d);
  each_lane(mask, [&](u32 l) { d[l] = mask; });
}

const Type B32{'b', 4, false}, PREDICATE{'p', 0, false};

void result_and_predicate(Decode& x) {
  const Operand& to = x.operand(0);
  const bool pair = to.kind == Operand::PAIR;
  x.in.d = x.result(pair ? to.parts[0] : to, B32);
  if (pair) x.in.e = x.result(to.parts[1], PREDICATE);
}

void synchronised(Decode& x, size_t members) {
  if (!x.has("sync")) fail("only the form with .sync is supported");
  x.in.converge = Converge::MEMBERS;
  x.in.members = x.source(members, B32);
}

}  // namespace

void decode_shfl(Decode& x) {
  const int mode = x.one_of({"up", "down", "bfly", "idx"});
  if (mode < 0 || x.type().bytes != 4) fail("the mode or type is not supported");
  x.in.mode = u32(mode);
  result_and_predicate(x);
  x.in.a = x.source(1, B32);
  x.in.b = x.source(2, B32);
  x.in.c = x.source(3, B32);
  synchronised(x, 4);
  x.in.run = shuffle;
}

void decode_redux(Decode& x) {
  const Type t = x.type();
  const int mode = x.one_of({"add", "min", "max", "and", "or", "xor"});
  if (mode < 0 || !t.integer()) fail("the operation is not supported");
  x.in.mode = u32(mode);
  x.in.type = u32(t.kind);
  x.in.d = x.result(0, B32);
  x.in.a = x.source(1, B32);
  synchronised(x, 2);
  x.in.run = reduce;
}

void decode_vote(Decode& x) {
  const int mode = x.one_of({"any", "all", "uni", "ballot"});
  x.type();
  if (mode < 0) fail("the mode is not supported");
  x.in.mode = u32(mode);
  x.in.d = x.result(0, x.in.mode == BALLOT ? B32 : PREDICATE);
  x.in.a = x.source(1, PREDICATE);
  x.in.flags = x.operand(1).inverted;
  synchronised(x, 2);
  x.in.run = vote;
}

void decode_match(Decode& x) {
  const Type t = x.type();
  x.in.mode = x.has("all") ? u32(ALL) : u32(ANY);
  x.has("any");
  result_and_predicate(x);
  x.in.a = x.source(1, t);
  synchronised(x, 2);
  x.in.run = match;
}

void decode_elect(Decode& x) {
  result_and_predicate(x);
  synchronised(x, 1);
  x.in.run = elect;
}

void decode_activemask(Decode& x) {
  x.in.d = x.result(0, x.type());
  x.in.run = active;
}

}  // namespace ptx
