// One statement of PTX becomes one Instruction: the helpers that the decoders of the table share.
#pragma once
#include <functional>
#include <initializer_list>

#include "faults.h"
#include "program.h"

namespace ptx {

struct Operand {
  enum Kind { REGISTER, NUMBER, ADDRESS, VECTOR, SYMBOL, SINK, PAIR } kind = REGISTER;
  std::string text;
  s64 offset = 0;
  bool negative = false, inverted = false;  // -1, !%p
  std::vector<Operand> parts;
};

// A type of PTX: kind u, s, b, f (32 or 64 bits), h (f16), g (bf16), t (tf32) or p (pred).
struct Type {
  char kind = 0;
  u8 bytes = 0;
  bool packed = false;  // two halves in 32 bits
  bool is(char k, u8 n) const { return kind == k && bytes == n && !packed; }
  bool floating() const { return kind == 'f'; }
  bool integer() const { return kind == 'u' || kind == 's' || kind == 'b'; }
};
bool is_type(const std::string& word);
Type type_of(const std::string& word);                                  // throws
u64 number_of(const std::string& text, u32 bytes, bool floating);       // an immediate; throws

// The registers and constants of the kernel that is being read.
class Builder {
 public:
  using Lookup = std::function<Slot(const std::string&)>;
  Builder(Kernel& kernel, Lookup lookup) : kernel(kernel), lookup_(std::move(lookup)) {}

  Kernel& kernel;
  Slot allocate(u8 bytes);
  Slot constant(u64 bits, u8 bytes);
  Slot symbol(Kernel::Base base, u32 offset, u8 bytes);
  Slot named(const std::string& name);  // a register or a special register; throws

 private:
  Lookup lookup_;
  std::map<std::pair<u32, u64>, Slot> constants_;
  std::unordered_map<std::string, Slot> specials_;
};

class Decode {
 public:
  Decode(Builder& builder, Instruction& in, const std::string& opcode,
         const std::vector<Operand>& operands);

  Instruction& in;
  std::vector<std::string> parts;  // of the opcode, "add", "rn", "f32"
  void finish();                   // throws where a part of the opcode was never asked for

  // Parts of the opcode. What is asked for counts as understood.
  bool has(const char* word);
  int one_of(std::initializer_list<const char*> words);  // the index of the one that is there, -1
  void ignore(std::initializer_list<const char*> prefixes);
  Type type(size_t from_end = 0);  // of the last part, the last but one, ...
  std::string part_like(const char* pattern);  // "m%un%uk%u": the part that scans, or ""
  Space space();

  // Operands. `wide`: the register may have more bytes than the type.
  size_t count() const { return operands_.size(); }
  const Operand& operand(size_t i) const;
  Slot source(size_t i, Type type, bool wide = false) { return source(operand(i), type, wide); }
  Slot source(const Operand& o, Type type, bool wide = false);
  Slot result(size_t i, Type type, bool wide = false) { return result(operand(i), type, wide); }
  Slot result(const Operand& o, Type type, bool wide = false);
  Range sources(size_t i, Type type, bool wide = false) { return many(operand(i), type, wide, 0); }
  Range sources(const Operand& o, Type type) { return many(o, type, false, 0); }
  Range results(size_t i, Type type, bool wide = false) { return many(operand(i), type, wide, 1); }
  void address(const Operand& o, Slot& base, s64& offset);
  void address(size_t i, Slot& base, s64& offset) { address(operand(i), base, offset); }
  s64 number(size_t i) const;
  Slot constant(u64 bits, u8 bytes) { return builder_.constant(bits, bytes); }
  Slot symbol(Kernel::Base base, u8 bytes) { return builder_.symbol(base, 0, bytes); }

 private:
  Range many(const Operand& o, Type type, bool wide, int writes);
  Range keep(const std::vector<Slot>& slots);

  Builder& builder_;
  const std::vector<Operand>& operands_;
  std::vector<bool> understood_;
  std::vector<Slot> read_, written_;
};

// A row of the instruction table.
struct Row {
  const char* name;
  const char* source;   // section of the PTX ISA 9.0 that gives the semantics
  const char* meaning;
  void (*decode)(Decode&);
};
const Row* find_row(const std::string& name);
const std::vector<Row>& table();

}  // namespace ptx
