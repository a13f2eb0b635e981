#include "dispatch.h"

#include <atomic>
#include <stdexcept>

#if defined(SEDE_WITH_neonbf16) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(SEDE_WITH_neonbf16) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace sede {

#define SEDE_DECLARE(isa)       \
  namespace isa {               \
  extern const Kernels kernels; \
  }
SEDE_DECLARE(scalar)
#ifdef SEDE_WITH_avx2
SEDE_DECLARE(avx2)
#endif
#ifdef SEDE_WITH_avx512
SEDE_DECLARE(avx512)
#endif
#ifdef SEDE_WITH_avx512bf16
SEDE_DECLARE(avx512bf16)
#endif
#ifdef SEDE_WITH_neonbf16
SEDE_DECLARE(neonbf16)
#endif

namespace {

struct Entry {
  const Kernels* kernels;
  bool supported;
};

#if defined(__x86_64__)
[[maybe_unused]] bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

[[maybe_unused]] bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

#ifdef SEDE_WITH_neonbf16
bool has_bf16() {
#if defined(__linux__)
  constexpr unsigned long kBf16 = 1ul << 14;  // HWCAP2_BF16, which old headers lack
  return getauxval(AT_HWCAP2) & kBf16;
#elif defined(__APPLE__)
  int value = 0;
  std::size_t size = sizeof(value);
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &value, &size, nullptr, 0) == 0 && value;
#else
  return false;
#endif
}
#endif

const std::vector<Entry>& entries() {
  static const std::vector<Entry> list = [] {
    std::vector<Entry> found{{&scalar::kernels, true}};
#if defined(SEDE_WITH_avx2) || defined(SEDE_WITH_avx512) || defined(SEDE_WITH_avx512bf16)
    __builtin_cpu_init();
#endif
#ifdef SEDE_WITH_avx2
    found.push_back({&avx2::kernels, has_avx2()});
#endif
#ifdef SEDE_WITH_avx512
    found.push_back({&avx512::kernels, has_avx512()});
#endif
#ifdef SEDE_WITH_avx512bf16
    found.push_back(
        {&avx512bf16::kernels, has_avx512() && __builtin_cpu_supports("avx512bf16")});
#endif
#ifdef SEDE_WITH_neonbf16
    found.push_back({&neonbf16::kernels, has_bf16()});
#endif
    return found;
  }();
  return list;
}

const Kernels* best() {
  const Kernels* chosen = nullptr;
  for (const Entry& entry : entries())
    if (entry.supported) chosen = entry.kernels;
  return chosen;
}

std::atomic<const Kernels*> active{nullptr};

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

const Kernels& kernels() {
  const Kernels* chosen = active;
  if (!chosen) active = chosen = best();
  return *chosen;
}

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Entry& entry : entries()) names.push_back(entry.kernels->name);
  return names;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Entry& entry : entries())
    if (entry.supported) names.push_back(entry.kernels->name);
  return names;
}

void select_isa(const std::string& name) {
  if (name.empty() || name == "auto") {
    active = best();
    return;
  }
  for (const Entry& entry : entries()) {
    if (name != entry.kernels->name) continue;
    if (!entry.supported)
      throw std::invalid_argument("SEDE_CPU_ISA=" + name + ": this processor lacks it; it can run " +
                                  joined(supported_isas()) + ". Unset it to use the best.");
    active = entry.kernels;
    return;
  }
  throw std::invalid_argument("SEDE_CPU_ISA must be auto or one of " + joined(compiled_isas()) +
                              ", got '" + name + "'.");
}

}  // namespace sede
