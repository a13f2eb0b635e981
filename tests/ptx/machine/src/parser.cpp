#include "parser.h"

#include <cstdlib>

namespace ptx {

Parser::Parser(const std::string& text) : program_(std::make_unique<Program>()) {
  tokens_ = tokens_of(text, program_->files);
}

void Parser::error(const std::string& text) const {
  fail(format("line %u: ", tokens_[at_].line) + text);
}

bool Parser::accept(const char* text) {
  if (!is(text)) return false;
  at_++;
  return true;
}

void Parser::expect(const char* text) {
  if (!accept(text)) error("'" + std::string(text) + "' is expected, not '" + word() + "'");
}

void Parser::skip_to_semicolon() {
  while (!is(";") && !is(END)) at_++;
  expect(";");
}

void Parser::skip_braces() {
  int depth = 0;
  do {
    if (is(END)) error("a brace is not closed");
    if (is("{")) depth++;
    if (is("}")) depth--;
    at_++;
  } while (depth);
}

u32 Parser::number() { return u32(number_of(take(), 4, false)); }

// Types and attributes, then name[size]. What stands after .ptr describes the pointee.
Variable Parser::variable() {
  Variable v;
  u32 elements = 1;
  bool pointee = false;
  while (word()[0] == '.') {
    const std::string w = take();
    if (w == ".align") {
      const u32 n = number();
      if (!pointee) v.alignment = n;
    } else if (w == ".ptr") {
      pointee = true;
    } else if (w == ".v2" || w == ".v4") {
      elements = u32(w[2] - '0');
    } else if (w != ".global" && w != ".shared" && w != ".const" && w != ".local") {
      v.element = type_of(w.substr(1)).bytes;
    }
  }
  v.name = take();
  v.bytes = u64(v.element) * elements;
  while (accept("[")) {
    if (accept("]")) {
      v.sized = false;
      continue;
    }
    v.bytes *= number();
    expect("]");
  }
  v.alignment = std::max(v.alignment, v.element);
  return v;
}

u64 Parser::initial_value(u32 bytes) {
  const bool negative = accept("-");
  const u64 value = number_of(take(), bytes, false);
  return negative ? 0 - value : value;
}

void Parser::module_variable(bool shared) {
  Variable v = variable();
  if (shared) {
    expect(";");
    if (v.sized) module_shared_.push_back(v);
    else dynamic_shared_.push_back(v.name);
    return;
  }
  std::vector<u8> bytes;
  const auto append = [&](u64 value) {
    for (u32 i = 0; i < v.element; i++) bytes.push_back(u8(value >> 8 * i));
  };
  if (accept("=")) {
    if (accept("{")) {
      while (!accept("}"))
        if (!accept(",")) append(initial_value(v.element));
    } else {
      append(initial_value(v.element));
    }
  }
  expect(";");
  if (v.sized) bytes.resize(v.bytes);
  Global& global = program_->globals[v.name];
  global.bytes.resize(bytes.size() + 256);  // the address is then a multiple of 256
  global.address = round_up(reinterpret_cast<u64>(global.bytes.data()), 256);
  memcpy(reinterpret_cast<void*>(global.address), bytes.data(), bytes.size());
}

std::unique_ptr<Program> Parser::run() {
  while (!is(END)) {
    const std::string w = take();
    if (w == ".visible" || w == ".extern" || w == ".weak" || w == ".common") continue;
    if (w == ".shared" || w == ".global" || w == ".const") {
      module_variable(w == ".shared");
    } else if (w == ".entry") {
      kernel();
    } else if (w == ".func") {  // functions are inlined by the compilers; calls are not supported
      while (!is("{") && !is(";") && !is(END)) at_++;
      if (is("{")) skip_braces();
      else expect(";");
    } else if (w == ".alias" || w == ".pragma") {
      skip_to_semicolon();
    } else {
      at_--;
      error("'" + w + "' is not expected here");
    }
  }
  return std::move(program_);
}

void Parser::open_scope() {
  scopes_.push_back(std::make_unique<Scope>());
  scopes_.back()->outer = scope_;
  scope_ = scopes_.back().get();
}

void Parser::place_shared(const Variable& v) {
  shared_end_ = round_up(shared_end_, v.alignment);
  shared_[v.name] = shared_end_;
  shared_end_ += v.bytes;
}

void Parser::parameters() {
  if (!accept("(")) return;
  Kernel& k = *kernel_;
  while (!accept(")")) {
    if (accept(",")) continue;
    expect(".param");
    const Variable v = variable();
    k.parameter_bytes = u32(round_up(k.parameter_bytes, v.alignment));
    k.parameters.push_back({v.name, u32(v.bytes), v.alignment, k.parameter_bytes});
    parameters_[v.name] = k.parameter_bytes;
    k.parameter_bytes += u32(v.bytes);
  }
}

void Parser::directives() {
  while (!is("{")) {
    if (is(END)) error("a kernel without a body");
    const std::string w = take();
    if (w == ".reqntid" || w == ".maxntid") {
      kernel_->most_threads = number();
      while (accept(",")) kernel_->most_threads *= number();
    } else if (w == ".minnctapersm") {
      kernel_->least_blocks = number();
    } else if (w == ".maxnreg") {
      kernel_->most_registers = number();
    }
  }
}

void Parser::kernel() {
  auto owned = std::make_unique<Kernel>();
  kernel_ = owned.get();
  kernel_->name = take();
  scopes_.clear();
  scope_ = nullptr;
  jumps_.clear();
  shared_.clear();
  local_.clear();
  parameters_.clear();
  shared_end_ = SHARED_BASE;
  open_scope();
  for (const Variable& v : module_shared_) place_shared(v);
  parameters();
  if (accept(";")) return;  // a declaration
  directives();
  Builder builder(*kernel_, [this](const std::string& name) { return find_register(name); });
  builder_ = &builder;
  body();
  kernel_->static_shared = u32(shared_end_ - SHARED_BASE);
  Instruction end;
  end.control = Control::EXIT;
  end.text = "(end of the kernel)";
  end.row = find_row("ret");
  kernel_->code.push_back(end);
  link_labels();
  find_wgmma_registers();
  program_->kernels[kernel_->name] = std::move(owned);
}

void Parser::registers() {
  const std::string type = take();
  if (type == ".v2" || type == ".v4") error("vector registers are not supported");
  const u8 width = type_of(type.substr(1)).bytes;
  const u8 bytes = width == 1 ? 2 : width;  // a register of a byte has 16 bits
  while (!accept(";")) {
    if (accept(",")) continue;
    const std::string name = take();
    if (!accept("<")) {
      scope_->registers[name] = builder_->allocate(bytes);
      continue;
    }
    const u32 count = number();
    expect(">");
    for (u32 i = 0; i < count; i++)
      scope_->registers[name + std::to_string(i)] = builder_->allocate(bytes);
  }
}

void Parser::body() {
  expect("{");
  for (int depth = 1; depth;) {
    if (is(END)) error("a brace is not closed");
    if (accept("{")) {
      depth++;
      open_scope();
    } else if (accept("}")) {
      depth--;
      scope_ = scope_->outer;
    } else if (accept(".reg")) {
      registers();
    } else if (accept(".shared")) {
      place_shared(variable());
      expect(";");
    } else if (accept(".local")) {
      const Variable v = variable();
      kernel_->local_bytes = u32(round_up(kernel_->local_bytes, 16));
      local_[v.name] = kernel_->local_bytes;
      kernel_->local_bytes += u32(v.bytes);
      expect(";");
    } else if (accept(";")) {
      continue;
    } else if (word()[0] == '.') {
      skip_to_semicolon();  // .pragma
    } else if (tokens_[at_ + 1].text == ":") {
      scope_->labels[take()] = s32(kernel_->code.size());
      expect(":");
    } else {
      statement();
    }
  }
}

std::unique_ptr<Program> parse(const std::string& text) { return Parser(text).run(); }

}  // namespace ptx
