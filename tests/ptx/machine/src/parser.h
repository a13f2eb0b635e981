// Reads a module: declarations (parser.cpp), then the statements of a kernel (statement.cpp).
#pragma once
#include "decode.h"
#include "lexer.h"

namespace ptx {

struct Variable {  // of .shared, .local, .global or .param
  std::string name;
  u64 bytes = 0;
  u32 alignment = 1, element = 1;
  bool sized = true;  // not name[]
};

struct Scope {
  Scope* outer;
  std::unordered_map<std::string, Slot> registers;
  std::unordered_map<std::string, s32> labels;
};

class Parser {
 public:
  explicit Parser(const std::string& text);
  std::unique_ptr<Program> run();

 private:
  // parser.cpp
  const std::string& word() const { return tokens_[at_].text; }
  std::string take() { return tokens_[at_++].text; }
  bool is(const char* text) const { return tokens_[at_].text == text; }
  bool accept(const char* text);
  void expect(const char* text);
  void skip_to_semicolon();
  void skip_braces();
  u32 number();
  [[noreturn]] void error(const std::string& text) const;
  Variable variable();
  void module_variable(bool shared);
  u64 initial_value(u32 bytes);
  void kernel();
  void parameters();
  void directives();
  void body();
  void registers();
  void place_shared(const Variable& v);
  void open_scope();

  // statement.cpp
  void statement();
  Operand operand();
  Operand address_operand();
  void resolve(Operand& o) const;
  Slot find_register(const std::string& name) const;
  std::string text_of(size_t first, size_t end) const;
  void link_labels();
  void find_wgmma_registers();

  std::unique_ptr<Program> program_;
  std::vector<Token> tokens_;
  size_t at_ = 0;

  std::vector<Variable> module_shared_;
  std::vector<std::string> dynamic_shared_;
  Kernel* kernel_ = nullptr;
  Builder* builder_ = nullptr;
  Scope* scope_ = nullptr;
  std::vector<std::unique_ptr<Scope>> scopes_;
  std::map<std::string, u64> shared_, local_, parameters_;
  u64 shared_end_ = 0;
  struct Jump {
    u32 instruction;
    std::string label;
    Scope* scope;
    u32 line;
  };
  std::vector<Jump> jumps_;
};

}  // namespace ptx
