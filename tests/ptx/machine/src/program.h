// A decoded program: registers as byte ranges of a warp's file, instructions as handler + operands.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "numbers.h"

namespace ptx {

constexpr u32 LANES = 32, WHOLE_WARP = 0xffffffffu;
constexpr u32 SHARED_BASE = 1024;                  // first valid shared address
constexpr u64 SHARED_WINDOW = 0x4000000000000000;  // generic address of shared address 0
constexpr u64 OFFSETS = 1 << 22;  // smaller numbers are offsets: no memory of a process lies there
constexpr u32 NO_SLOT = 0xffffffffu;
constexpr u32 SLOT_ALIGNMENT = 64;

// A register of a warp: `bytes` a lane, side by side; a predicate (0 bytes) is one bit a lane.
struct Slot {
  u32 offset = NO_SLOT;
  u8 bytes = 0;
  bool used() const { return offset != NO_SLOT; }
};

struct Warp;
struct Instruction;
using Handler = void (*)(Warp&, const Instruction&, u32 mask);

// How an instruction moves the program counter or blocks.
enum class Control : u8 { NEXT, BRANCH, EXIT, BARRIER, BARRIER_ARRIVE, WAIT_PHASE, SET_REGISTERS };
// Which lanes must come together: those named by the membermask, or the whole warp (.aligned).
enum class Converge : u8 { NONE, MEMBERS, WARP };
enum class Space : u8 { GENERIC, GLOBAL, SHARED, LOCAL, PARAM };

// In Instruction::flags: an access that other blocks may share (volatile, relaxed, acquire, ...).
constexpr u32 ORDERED = 1u << 31;

struct Range {  // of Kernel::pool
  u32 first = 0, count = 0;
};

struct Row;  // of the instruction table

struct Instruction {
  Handler run = nullptr;
  const Row* row = nullptr;
  Control control = Control::NEXT;
  Converge converge = Converge::NONE;
  Space space = Space::GENERIC;
  bool guarded = false, guard_negated = false;
  bool collective_matrix = false;  // wgmma: registers are checked by its own rules
  bool copies_register = false;    // mov: no access in the sense of wgmma.fence
  u32 guard = 0;
  Slot d, a, b, c, e, members;
  s64 offset = 0, offset_b = 0, offset_c = 0;  // of addresses in a, b, c
  u32 width = 0, count = 0, type = 0, mode = 0, flags = 0;
  s32 target = -1;
  Range v[4];              // vector operands
  Range sources, results;  // every register that is read or written
  Range touched;           // those of them whose values a wgmma of this kernel uses
  u32 line = 0, file = 0, file_line = 0;
  std::string text;
};

struct Parameter {
  std::string name;
  u32 bytes, alignment, offset;
};

struct Kernel {
  // What is written into registers when a warp starts.
  struct Constant {
    Slot slot;
    u64 value;
  };
  struct Special {
    std::string name;
    Slot slot;
  };
  enum class Base { DYNAMIC_SHARED, LOCAL, LOCAL_OFFSET, PARAM };
  struct Symbol {
    Slot slot;
    Base base;
    u32 offset;
  };

  std::string name;
  std::vector<Parameter> parameters;
  u32 parameter_bytes = 0;
  std::vector<Instruction> code;
  std::vector<Slot> pool;
  u32 register_bytes = SLOT_ALIGNMENT, static_shared = 0, local_bytes = 0;
  std::vector<Constant> constants;
  std::vector<Special> specials;
  std::vector<Symbol> symbols;
  u32 most_threads = 0, least_blocks = 0, most_registers = 0;  // .reqntid/.maxntid, .minnctapersm
};

struct Global {  // a module variable
  std::vector<u8> bytes;
  u64 address = 0;
};

struct Program {
  std::unordered_map<std::string, std::unique_ptr<Kernel>> kernels;
  std::map<std::string, Global> globals;
  std::map<u32, std::string> files;
};

std::unique_ptr<Program> parse(const std::string& text);  // throws std::runtime_error

}  // namespace ptx
