// PTX text to tokens, each with its line and the source position of the last .loc.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "numbers.h"

namespace ptx {

struct Token {
  std::string text;
  u32 line, file, file_line;
};

constexpr const char* END = "<end>";

// The debug sections at the end are left out; .file entries go into files.
std::vector<Token> tokens_of(const std::string& text, std::map<u32, std::string>& files);

}  // namespace ptx
