#include "decode.h"

#include <cctype>
#include <cstdio>
#include <cstdlib>

namespace ptx {

bool is_type(const std::string& word) {
  static const char* const WORDS[] = {"pred", "b8", "b16", "b32", "b64", "b128", "u8", "u16",
                                      "u32", "u64", "s8", "s16", "s32", "s64", "f16", "f32",
                                      "f64", "bf16", "f16x2", "bf16x2", "tf32"};
  for (const char* w : WORDS)
    if (word == w) return true;
  return false;
}

Type type_of(const std::string& word) {
  if (!is_type(word)) fail("type ." + word + " is not supported");
  if (word == "pred") return {'p', 0, false};
  if (word == "tf32") return {'t', 4, false};
  if (word == "f16" || word == "f16x2") return {'h', u8(word.size() == 3 ? 2 : 4), word.size() > 3};
  if (word == "bf16" || word == "bf16x2")
    return {'g', u8(word.size() == 4 ? 2 : 4), word.size() > 4};
  return {word[0], u8(atoi(word.c_str() + 1) / 8), false};
}

u64 number_of(const std::string& text, u32 bytes, bool floating) {
  const auto as_float = [&](double d) -> u64 {
    return bytes == 8 ? bit_cast<u64>(d) : u64(bits_of(float(d)));
  };
  if (text.size() == 10 && text[0] == '0' && (text[1] == 'f' || text[1] == 'F')) {
    const u32 bits = u32(strtoul(text.c_str() + 2, nullptr, 16));
    return floating && bytes == 8 ? bit_cast<u64>(double(float_of(bits))) : bits;
  }
  if (text.size() == 18 && text[0] == '0' && (text[1] == 'd' || text[1] == 'D'))
    return strtoull(text.c_str() + 2, nullptr, 16);
  if (floating && text.find('.') != std::string::npos) return as_float(atof(text.c_str()));
  std::string digits = text;
  if (digits.back() == 'U') digits.pop_back();
  char* end = nullptr;
  const u64 value = strtoull(digits.c_str(), &end, 0);
  if (*end || digits.empty()) fail("'" + text + "' is not a number");
  return floating ? as_float(double(value)) : value;
}

Slot Builder::allocate(u8 bytes) {
  const Slot slot{kernel.register_bytes, bytes};
  kernel.register_bytes += u32(round_up(bytes ? bytes * LANES : 4, SLOT_ALIGNMENT));
  return slot;
}

Slot Builder::constant(u64 bits, u8 bytes) {
  if (bytes == 0) bits = bits ? 0xffffffffu : 0;
  if (bytes == 2 || bytes == 4) bits &= (u64(1) << 8 * bytes) - 1;
  const auto key = std::make_pair(u32(bytes), bits);
  const auto found = constants_.find(key);
  if (found != constants_.end()) return found->second;
  const Slot slot = allocate(bytes);
  kernel.constants.push_back({slot, bits});
  return constants_[key] = slot;
}

Slot Builder::symbol(Kernel::Base base, u32 offset, u8 bytes) {
  const Slot slot = allocate(bytes);
  kernel.symbols.push_back({slot, base, offset});
  return slot;
}

Slot Builder::named(const std::string& name) {
  const Slot slot = lookup_(name);
  if (slot.used()) return slot;
  if (name[0] != '%') fail("'" + name + "' is not declared");
  const auto found = specials_.find(name);
  if (found != specials_.end()) return found->second;
  const bool wide = name == "%clock64" || name == "%globaltimer";
  const Slot made = allocate(wide ? 8 : 4);
  kernel.specials.push_back({name, made});
  return specials_[name] = made;
}

Decode::Decode(Builder& builder, Instruction& in, const std::string& opcode,
               const std::vector<Operand>& operands)
    : in(in), builder_(builder), operands_(operands) {
  for (size_t at = 0;;) {
    const size_t dot = opcode.find('.', at);
    parts.push_back(opcode.substr(at, dot == std::string::npos ? dot : dot - at));
    if (dot == std::string::npos) break;
    at = dot + 1;
  }
  understood_.assign(parts.size(), false);
  understood_[0] = true;
}

void Decode::finish() {
  for (size_t i = 0; i < parts.size(); i++)
    if (!understood_[i]) fail("." + parts[i] + " is not supported here");
  in.sources = keep(read_);
  in.results = keep(written_);
}

bool Decode::has(const char* word) {
  bool found = false;
  for (size_t i = 1; i < parts.size(); i++)
    if (parts[i] == word) understood_[i] = found = true;
  return found;
}

int Decode::one_of(std::initializer_list<const char*> words) {
  int index = 0, found = -1;
  for (const char* word : words) {
    if (has(word)) found = index;
    index++;
  }
  return found;
}

void Decode::ignore(std::initializer_list<const char*> prefixes) {
  for (size_t i = 1; i < parts.size(); i++)
    for (const std::string prefix : prefixes)
      if (parts[i].compare(0, prefix.size(), prefix) == 0) understood_[i] = true;
}

Type Decode::type(size_t from_end) {
  if (from_end + 1 >= parts.size()) fail("a type is missing");
  const size_t i = parts.size() - 1 - from_end;
  understood_[i] = true;
  return type_of(parts[i]);
}

std::string Decode::part_like(const char* pattern) {
  u32 x, y, z;
  for (size_t i = 1; i < parts.size(); i++)
    if (sscanf(parts[i].c_str(), pattern, &x, &y, &z) >= 2) {
      understood_[i] = true;
      return parts[i];
    }
  return "";
}

Space Decode::space() {
  if (has("global") || has("const")) return Space::GLOBAL;
  if (has("shared") || has("shared::cta")) return Space::SHARED;
  if (has("local")) return Space::LOCAL;
  if (has("param") || has("param::entry")) return Space::PARAM;
  return Space::GENERIC;
}

const Operand& Decode::operand(size_t i) const {
  if (i >= operands_.size()) fail(format("operand %zu is missing", i + 1));
  return operands_[i];
}

static void check_width(const Operand& o, Slot slot, Type type, bool wide) {
  if (slot.bytes == type.bytes || (wide && slot.bytes > type.bytes)) return;
  fail(format("'%s' has %u bits, the instruction %u", o.text.c_str(), slot.bytes * 8,
              type.bytes * 8));
}

Slot Decode::source(const Operand& o, Type type, bool wide) {
  switch (o.kind) {
    case Operand::SINK: return {};
    case Operand::NUMBER: {
      u64 bits = number_of(o.text, type.bytes, type.floating());
      if (o.negative)
        bits = type.floating() ? bits ^ (u64(1) << (type.bytes * 8 - 1)) : 0 - bits;
      return builder_.constant(bits, type.bytes == 1 ? 2 : type.bytes);
    }
    case Operand::SYMBOL: {
      if (o.text == "WARP_SZ") return builder_.constant(LANES, type.bytes);
      static const std::pair<const char*, Kernel::Base> BASES[] = {
          {"<dynamic>", Kernel::Base::DYNAMIC_SHARED},
          {"<local>", Kernel::Base::LOCAL_OFFSET},
          {"<param>", Kernel::Base::PARAM}};
      for (const auto& base : BASES)
        if (o.text == base.first) return builder_.symbol(base.second, u32(o.offset), type.bytes);
      fail("'" + o.text + "' is not declared");
    }
    case Operand::REGISTER: {
      const Slot slot = builder_.named(o.text);
      check_width(o, slot, type, wide);
      read_.push_back(slot);
      return slot;
    }
    default: fail("a register or a number is expected");
  }
}

Slot Decode::result(const Operand& o, Type type, bool wide) {
  if (o.kind == Operand::SINK) return {};
  if (o.kind != Operand::REGISTER) fail("the result is no register");
  const Slot slot = builder_.named(o.text);
  check_width(o, slot, type, wide);
  written_.push_back(slot);
  return slot;
}

Range Decode::keep(const std::vector<Slot>& slots) {
  std::vector<Slot>& pool = builder_.kernel.pool;
  const Range range{u32(pool.size()), u32(slots.size())};
  pool.insert(pool.end(), slots.begin(), slots.end());
  return range;
}

Range Decode::many(const Operand& o, Type type, bool wide, int writes) {
  std::vector<Slot> slots;
  const auto one = [&](const Operand& part) {
    slots.push_back(writes ? result(part, type, wide) : source(part, type, wide));
  };
  if (o.kind == Operand::VECTOR)
    for (const Operand& part : o.parts) one(part);
  else
    one(o);
  return keep(slots);
}

void Decode::address(const Operand& o, Slot& base, s64& offset) {
  if (o.kind != Operand::ADDRESS) fail("an address in brackets is expected");
  offset = o.offset;
  const Operand& b = o.parts.at(0);
  if (b.kind == Operand::NUMBER) {
    offset += s64(number_of(b.text, 8, false));
    base = {};
  } else if (b.kind == Operand::SYMBOL) {
    base = source(b, {'u', 8, false});
  } else {
    base = builder_.named(b.text);
    if (base.bytes != 4 && base.bytes != 8) fail("an address has 32 or 64 bits");
    read_.push_back(base);
  }
}

s64 Decode::number(size_t i) const {
  const Operand& o = operand(i);
  if (o.kind != Operand::NUMBER) fail(format("operand %zu must be a number", i + 1));
  const s64 value = s64(number_of(o.text, 8, false));
  return o.negative ? -value : value;
}

}  // namespace ptx
