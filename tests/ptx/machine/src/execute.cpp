// Runs the instructions of a warp: groups of lanes that have branched apart, and where they meet.
#include "lanes.h"

namespace ptx {

void report(Warp& w, const Instruction& in, Kind kind, const std::string& text) {
  Block& block = *w.block;
  const u32 place = u32(&in - block.kernel->code.data());
  if (block.faults.known(kind, place)) return;
  std::string where = format("line %u", in.line);
  const auto file = block.program->files.find(in.file);
  if (file != block.program->files.end())
    where += format(" (%s:%u)", file->second.c_str(), in.file_line);
  block.faults.add(kind, place,
                   format("[%s] %s, block (%u, %u, %u), warp %u: %s   `%s`", name_of(kind),
                          where.c_str(), block.index[0], block.index[1], block.index[2], w.id,
                          text.c_str(), in.text.c_str()));
}

bool reported(Warp& w, const Instruction& in, Kind kind) {
  return w.block->faults.known(kind, u32(&in - w.block->kernel->code.data()));
}

namespace {

class Runner {
 public:
  explicit Runner(Warp& w) : w_(w), block_(*w.block), code_(block_.kernel->code.data()) {}

  bool run(u32 slice) {
    for (Group& g : w_.groups)
      if (g.state == Group::PHASE) g.state = Group::READY;
    while (executed_ < slice && w_.state == Warp::READY) {
      if (w_.groups.empty()) {
        end();
        break;
      }
      if (!choose()) {
        w_.state = Warp::AT_PHASE;
        break;
      }
      step();
    }
    block_.executed += executed_;
    block_.lane_executed += lanes_;
    return executed_ > 0;
  }

 private:
  Group& group() { return w_.groups[w_.current]; }

  // The group with the lowest program counter goes first, so that lanes meet again soon.
  bool choose() {
    if (w_.groups.size() == 1 && group_is_ready()) return true;
    merge();
    for (int attempt = 0; attempt < 2; attempt++) {
      u32 best = NO_SLOT, apart = NO_SLOT;
      bool waiting = false;
      for (u32 i = 0; i < w_.groups.size(); i++) {
        const Group& g = w_.groups[i];
        u32& candidate = g.state == Group::READY ? best : apart;
        if (g.state == Group::PHASE) waiting = true;
        else if (candidate == NO_SLOT || g.pc < w_.groups[candidate].pc) candidate = i;
      }
      if (best != NO_SLOT) {
        w_.current = best;
        return true;
      }
      if (!waiting) {  // the lanes that it waits for will not come
        w_.current = apart;
        forced_ = true;
        return true;
      }
      if (!moved_) return false;
      moved_ = false;
      for (Group& g : w_.groups)
        if (g.state == Group::PHASE) g.state = Group::READY;
    }
    return false;
  }

  bool group_is_ready() {
    w_.current = 0;
    return group().state == Group::READY;
  }

  void merge() {
    std::vector<Group>& groups = w_.groups;
    for (size_t i = 0; i < groups.size(); i++)
      for (size_t j = i + 1; j < groups.size();) {
        const bool same = groups[j].pc == groups[i].pc && groups[i].state != Group::PHASE &&
                          groups[j].state != Group::PHASE;
        if (!same) {
          j++;
          continue;
        }
        groups[i].mask |= groups[j].mask;
        groups[i].state = Group::READY;
        groups.erase(groups.begin() + s64(j));
      }
  }

  // Whether lanes are missing that must take part; they may still come.
  bool must_wait(const Instruction& in, u32 mask) {
    u32 needed = w_.alive;
    if (in.converge == Converge::MEMBERS) {
      const u32 members = w_.at<u32>(in.members)[first_lane(mask)];
      if (mask & ~members) {
        if (!(mask & members)) {
          report(w_, in, Kind::CONVERGENCE,
                 format("lanes %08x are not in their membermask %08x", mask, members));
          return false;
        }
      }
      needed &= members;
    }
    if (!(needed & ~mask)) {
      forced_ = false;
      return false;
    }
    if (forced_) {
      forced_ = false;
      report(w_, in, Kind::CONVERGENCE,
             format("lanes %08x wait for lanes %08x, which do not come", mask, needed & ~mask));
      return false;
    }
    Group& g = group();
    const u32 others = g.mask & ~mask, pc = g.pc;
    g.mask = mask;
    g.state = Group::APART;
    if (others) w_.groups.emplace_back(pc + 1, others);
    return true;
  }

  void step() {
    Group& g = group();
    const Instruction& in = code_[g.pc];
    u32 mask = g.mask;
    if (in.guarded) {
      const u32 p = *reinterpret_cast<u32*>(w_.registers + in.guard);
      mask &= in.guard_negated ? ~p : p;
    }
    if (mask && in.converge != Converge::NONE && must_wait(in, mask)) return;
    if (mask) {
      block_.ran[g.pc] = 1;
      if (!in.collective_matrix && (in.touched.count || !w_.products.empty()))
        check_products(w_, in);
    }
    if (block_.options.histogram) block_.counts[g.pc]++;
    execute(in, mask);
  }

  void done(u32 mask) {
    executed_++;
    lanes_ += lanes_in(mask);
    moved_ = true;
  }

  void execute(const Instruction& in, u32 mask) {
    switch (in.control) {
      case Control::NEXT:
        if (mask) in.run(w_, in, mask);
        group().pc++;
        break;
      case Control::BRANCH: branch(in, mask); break;
      case Control::EXIT: exit(mask); break;
      case Control::BARRIER:
      case Control::BARRIER_ARRIVE:
        group().pc++;
        if (mask) arrive_at_barrier(w_, in, mask, in.control == Control::BARRIER);
        break;
      case Control::WAIT_PHASE:
        if (mask && !wait_phase(in, mask)) return;
        group().pc++;
        break;
      case Control::SET_REGISTERS:
        if (mask && !change_registers(w_, in)) return;
        group().pc++;
        break;
    }
    done(mask);
  }

  void branch(const Instruction& in, u32 taken) {
    Group& g = group();
    const u32 rest = g.mask & ~taken;
    if (!taken) {
      g.pc++;
    } else if (!rest) {
      g.pc = u32(in.target);
    } else {
      g.mask = rest;
      g.pc++;
      w_.groups.emplace_back(u32(in.target), taken);
    }
  }

  void exit(u32 mask) {
    Group& g = group();
    w_.alive &= ~mask;
    g.mask &= ~mask;
    g.pc++;
    if (!g.mask) w_.groups.erase(w_.groups.begin() + w_.current);
    for (Group& other : w_.groups)  // they may wait for the lanes that have gone
      if (other.state == Group::APART) other.state = Group::READY;
    w_.current = 0;
  }

  // try_wait and test_wait: a lane goes on only when the phase is over.
  bool wait_phase(const Instruction& in, u32 mask) {
    const u32 lane = first_lane(mask);
    const u32 address = shared_address(w_, in.a, in.offset, lane), parity = w_.at<u32>(in.b)[lane];
    if (!phase_done(w_, in, mask, address, parity)) {
      Group& g = group();
      g.state = Group::PHASE;
      g.mbarrier = address;
      g.parity = parity;
      w_.waits_at = &in;
      return false;
    }
    set_predicate(w_, in.d, mask, WHOLE_WARP);
    return true;
  }

  void end() {
    w_.state = Warp::DONE;
    for (u32 i = 0; i < 16; i++) try_barrier(block_, i);
    const Instruction& last = block_.kernel->code.back();
    if (!w_.products.empty())
      report(w_, *w_.products[0].by, Kind::ASYNC_LOST, "the warp ends before this is waited for");
    if (!w_.stores.empty())
      report(w_, *w_.stores[0].by, Kind::ASYNC_LOST, "the warp ends before this is waited for");
    if (!w_.copies.empty())
      report(w_, last, Kind::ASYNC_LOST, "the warp ends with cp.async under way");
  }

  Warp& w_;
  Block& block_;
  const Instruction* code_;
  u32 executed_ = 0;
  u64 lanes_ = 0;
  bool moved_ = true, forced_ = false;
};

}  // namespace

bool run_warp(Warp& w, u32 slice) { return Runner(w).run(slice); }

}  // namespace ptx
