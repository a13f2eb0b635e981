#include "faults.h"

#include <cstdarg>
#include <stdexcept>

namespace ptx {

static const char* const NAMES[] = {
    "global-bounds", "global-readonly", "global-unwritten", "global-race",
    "shared-bounds", "shared-unwritten", "shared-race", "warp-race", "replica-rounding",
    "misaligned", "async-early", "async-overlap", "async-overwrite", "async-lost",
    "proxy-fence", "init-fence", "wgmma-fence", "wgmma-early", "wgmma-operand", "swizzle",
    "mbarrier", "barrier", "convergence", "shuffle", "registers", "tensor-map", "operand",
    "deadlock", "step-limit"};
static_assert(sizeof NAMES / sizeof *NAMES == size_t(Kind::COUNT), "a name a kind");

const char* name_of(Kind kind) { return NAMES[size_t(kind)]; }

bool Faults::known(Kind kind, u32 place) {
  const auto found = index_.find(key(kind, place));
  if (found == index_.end()) return false;
  faults_[found->second].count++;
  return true;
}

void Faults::add(Kind kind, u32 place, const std::string& text) {
  if (known(kind, place)) return;
  index_[key(kind, place)] = faults_.size();
  keys_.push_back(key(kind, place));
  faults_.push_back({kind, text});
}

void Faults::merge(const Faults& other) {
  for (size_t i = 0; i < other.faults_.size(); i++) {
    const auto found = index_.find(other.keys_[i]);
    if (found != index_.end()) {
      faults_[found->second].count += other.faults_[i].count;
      continue;
    }
    index_[other.keys_[i]] = faults_.size();
    keys_.push_back(other.keys_[i]);
    faults_.push_back(other.faults_[i]);
  }
}

std::string format(const char* pattern, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, pattern);
  vsnprintf(text, sizeof text, pattern, arguments);
  va_end(arguments);
  return text;
}

void fail(const std::string& text) { throw std::runtime_error(text); }

}  // namespace ptx
