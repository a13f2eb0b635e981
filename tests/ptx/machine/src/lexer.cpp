#include "lexer.h"

#include <cctype>
#include <cstdio>

namespace ptx {
namespace {

bool is_word(char c) {
  return isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
}

bool starts_with(const std::string& line, size_t at, const char* word) {
  const std::string w = word;
  return line.compare(at, w.size(), w) == 0 &&
         (at + w.size() == line.size() || !is_word(line[at + w.size()]));
}

std::string file_name(const std::string& line) {
  const size_t open = line.find('"'), close = line.rfind('"');
  if (open == std::string::npos || close <= open) return "";
  std::string path = line.substr(open + 1, close - open - 1);
  const size_t inner = path.rfind('"');  // .file 1 "folder" "name"
  if (inner != std::string::npos) path = path.substr(inner + 1);
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

class Lexer {
 public:
  Lexer(const std::string& text, std::map<u32, std::string>& files) : text_(text), files_(files) {}

  std::vector<Token> run() {
    for (size_t at = 0; at < text_.size();) {
      size_t end = text_.find('\n', at);
      if (end == std::string::npos) end = text_.size();
      line_++;
      if (!line(text_.substr(at, end - at))) break;
      at = end + 1;
    }
    tokens_.push_back({END, line_, 0, 0});
    return std::move(tokens_);
  }

 private:
  bool line(const std::string& l) {  // false at the debug sections
    const size_t first = l.find_first_not_of(" \t\r");
    if (first == std::string::npos) return true;
    if (!in_comment_) {
      if (starts_with(l, first, ".section")) return false;
      if (starts_with(l, first, ".loc")) {
        sscanf(l.c_str() + first + 4, "%u %u", &file_, &file_line_);
        return true;
      }
      if (starts_with(l, first, ".file")) {
        u32 number = 0;
        if (sscanf(l.c_str() + first + 5, "%u", &number) == 1) files_[number] = file_name(l);
        return true;
      }
      for (const char* word : {".version", ".target", ".address_size"})
        if (starts_with(l, first, word)) return true;
    }
    for (size_t at = first; at < l.size();) at = token(l, at);
    return true;
  }

  size_t token(const std::string& l, size_t at) {  // where the next one starts
    if (in_comment_) {
      const size_t end = l.find("*/", at);
      if (end == std::string::npos) return l.size();
      in_comment_ = false;
      return end + 2;
    }
    const char c = l[at];
    if (c == ' ' || c == '\t' || c == '\r') return at + 1;
    if (l.compare(at, 2, "//") == 0) return l.size();
    if (l.compare(at, 2, "/*") == 0) {
      in_comment_ = true;
      return at + 2;
    }
    size_t end = at + 1;
    if (c == '"') {
      end = l.find('"', at + 1);
      end = end == std::string::npos ? l.size() : end + 1;
    } else if (is_word(c)) {
      while (end < l.size() && (is_word(l[end]) || l.compare(end, 2, "::") == 0))
        end += l[end] == ':' ? 2 : 1;
    }
    tokens_.push_back({l.substr(at, end - at), line_, file_, file_line_});
    return end;
  }

  const std::string& text_;
  std::map<u32, std::string>& files_;
  std::vector<Token> tokens_;
  u32 line_ = 0, file_ = 0, file_line_ = 0;
  bool in_comment_ = false;
};

}  // namespace

std::vector<Token> tokens_of(const std::string& text, std::map<u32, std::string>& files) {
  return Lexer(text, files).run();
}

}  // namespace ptx
