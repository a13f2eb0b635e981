// Statements: guard, opcode, operands; symbols become numbers; labels become indices.
#include <algorithm>
#include <cctype>
#include <stdexcept>

#include "parser.h"

namespace ptx {

Slot Parser::find_register(const std::string& name) const {
  for (const Scope* s = scope_; s; s = s->outer) {
    const auto found = s->registers.find(name);
    if (found != s->registers.end()) return found->second;
  }
  return {};
}

Operand Parser::address_operand() {
  Operand o;
  o.kind = Operand::ADDRESS;
  o.parts.push_back(operand());
  while (!accept("]")) {
    if (accept(",")) {
      o.parts.push_back(operand());
      continue;
    }
    const bool minus = is("-");
    if (!minus) expect("+");
    else at_++;
    const bool negative = minus != accept("-");
    const s64 value = s64(number_of(take(), 8, false));
    o.offset += negative ? -value : value;
  }
  resolve(o.parts[0]);
  return o;
}

Operand Parser::operand() {
  Operand o;
  if (accept("!")) {
    o = operand();
    o.inverted = true;
    return o;
  }
  if (accept("[")) return address_operand();
  if (accept("{")) {
    o.kind = Operand::VECTOR;
    while (!accept("}"))
      if (!accept(",")) o.parts.push_back(operand());
    return o;
  }
  if (is("(")) error("calls are not supported");
  o.negative = accept("-");
  o.text = take();
  if (o.text == "_") {
    o.kind = Operand::SINK;
  } else if (o.negative || isdigit(static_cast<unsigned char>(o.text[0]))) {
    o.kind = Operand::NUMBER;
  } else if (o.text[0] == '%' || find_register(o.text).used()) {
    o.kind = Operand::REGISTER;
  } else {
    o.kind = Operand::SYMBOL;
    if (is("+")) {  // symbol+4; in an address the brackets take it
      at_++;
      o.offset = s64(number_of(take(), 8, false));
    }
    resolve(o);
  }
  if (accept("|")) {
    Operand pair;
    pair.kind = Operand::PAIR;
    pair.parts = {o, operand()};
    return pair;
  }
  return o;
}

void Parser::resolve(Operand& o) const {
  if (o.kind != Operand::SYMBOL || o.text[0] == '<') return;
  const auto number = [&](u64 value) {
    o.kind = Operand::NUMBER;
    o.text = std::to_string(value + u64(o.offset));
    o.offset = 0;
  };
  const auto based = [&](const char* base, u64 offset) {
    o.text = base;
    o.offset += s64(offset);
  };
  const auto in = [&](const std::map<std::string, u64>& symbols) {
    const auto found = symbols.find(o.text);
    return found == symbols.end() ? nullptr : &found->second;
  };
  const auto& dynamic = dynamic_shared_;
  if (const u64* address = in(shared_)) return number(*address);
  if (const u64* offset = in(local_)) return based("<local>", *offset);
  if (const u64* offset = in(parameters_)) return based("<param>", *offset);
  if (std::find(dynamic.begin(), dynamic.end(), o.text) != dynamic.end())
    return based("<dynamic>", 0);
  const auto global = program_->globals.find(o.text);
  if (global != program_->globals.end()) return number(global->second.address);
}

std::string Parser::text_of(size_t first, size_t end) const {
  std::string text;
  for (size_t i = first; i < end && text.size() < 160; i++) {
    const std::string& next = tokens_[i + 1].text;
    text += tokens_[i].text;
    const bool opens = text.back() == '@' || text.back() == '[' || text.back() == '{' ||
                       text.back() == '!';
    const bool closes = next == "," || next == ";" || next == "]" || next == "}";
    if (!opens && !closes) text += " ";
  }
  return text;
}

void Parser::statement() {
  Instruction in;
  in.line = tokens_[at_].line;
  in.file = tokens_[at_].file;
  in.file_line = tokens_[at_].file_line;
  const size_t first = at_;
  if (accept("@")) {
    in.guarded = true;
    in.guard_negated = accept("!");
    const Slot guard = find_register(take());
    if (!guard.used() || guard.bytes) error("the guard is no predicate");
    in.guard = guard.offset;
  }
  const std::string opcode = take();
  const std::string name = opcode.substr(0, opcode.find('.'));
  std::vector<Operand> operands;
  if (name == "bra") {
    jumps_.push_back({u32(kernel_->code.size()), take(), scope_, in.line});
  } else {
    while (!is(";")) {
      if (is(END)) error("a statement does not end");
      if (!accept(",")) operands.push_back(operand());
    }
  }
  in.text = text_of(first, at_);
  expect(";");
  in.row = find_row(name);
  if (!in.row) fail(format("line %u: '%s' is not supported", in.line, in.text.c_str()));
  try {
    Decode decode(*builder_, in, opcode, operands);
    in.row->decode(decode);
    decode.finish();
  } catch (const std::exception& e) {
    fail(format("line %u: %s: %s", in.line, in.text.c_str(), e.what()));
  }
  kernel_->code.push_back(std::move(in));
}

void Parser::link_labels() {
  for (const Jump& jump : jumps_) {
    s32 target = -1;
    for (const Scope* s = jump.scope; s && target < 0; s = s->outer) {
      const auto found = s->labels.find(jump.label);
      if (found != s->labels.end()) target = found->second;
    }
    if (target < 0) fail(format("line %u: no label '%s'", jump.line, jump.label.c_str()));
    kernel_->code[jump.instruction].target = target;
  }
}

// Which registers a wgmma uses, and those that are copied into them: only their accesses are noted.
void Parser::find_wgmma_registers() {
  Kernel& k = *kernel_;
  std::vector<bool> used(k.register_bytes / SLOT_ALIGNMENT, false);
  const auto each = [&](const Range& r, auto body) {
    for (u32 i = r.first; i < r.first + r.count; i++) body(k.pool[i]);
  };
  const auto is_used = [&](Slot s) { return used[s.offset / SLOT_ALIGNMENT]; };
  bool grew = false;
  for (const Instruction& in : k.code)
    if (in.collective_matrix)
      for (const Range& r : {in.v[0], in.v[1]})
        each(r, [&](Slot s) { grew = used[s.offset / SLOT_ALIGNMENT] = true; });
  if (!grew) return;
  while (grew) {
    grew = false;
    for (const Instruction& in : k.code)
      if (in.copies_register && is_used(in.d) && !is_used(in.a))
        grew = used[in.a.offset / SLOT_ALIGNMENT] = true;
  }
  for (Instruction& in : k.code) {
    if (in.collective_matrix) continue;
    std::vector<Slot> touched;
    for (const Range& r : {in.sources, in.results})
      each(r, [&](Slot s) {
        if (is_used(s)) touched.push_back(s);
      });
    in.touched = {u32(k.pool.size()), u32(touched.size())};
    k.pool.insert(k.pool.end(), touched.begin(), touched.end());
  }
}

}  // namespace ptx
