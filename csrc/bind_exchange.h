// A look at a tensor through DLPack's exchange of version 1, where torch offers it: one C call in
// the place of five attributes. The layouts below are those of DLPack's interface.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace sede_bind::exchange {

namespace py = pybind11;

constexpr std::uint32_t kMajor = 1;
constexpr std::int32_t kCpu = 1;

struct View {
  void* data;
  std::int32_t device, device_index, dimensions;
  std::uint8_t kind, bits;
  std::uint16_t lanes;
  std::int64_t* size;
  std::int64_t* stride;
  std::uint64_t offset;  // in bytes
};

struct Functions {
  std::uint32_t major, minor;
  Functions* before;
  void* allocate;
  void* share;
  void* take;
  int (*look)(void* tensor, View* out);  // may be null
  void* stream;
};

inline const Functions*& functions() {
  static const Functions* held = nullptr;  // nothing offered: attributes are read
  return held;
}

// The capsule of torch.Tensor, or None. One of another version is left alone.
inline void set(const py::object& capsule) {
  functions() = nullptr;
  if (capsule.is_none()) return;
  const auto* found =
      static_cast<const Functions*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (found == nullptr) throw py::error_already_set();
  if (found->major == kMajor && found->look != nullptr) functions() = found;
}

// Place of a dtype in the order of `set_dtypes`, -1 for none of them.
inline int code_of(const View& seen) {
  struct Code {
    std::uint8_t kind, bits;
  };
  constexpr Code codes[] = {{2, 32}, {2, 64}, {4, 16}, {2, 16}, {0, 8}, {0, 64}, {6, 8}};
  if (seen.lanes != 1) return -1;
  for (int code = 0; code < int(sizeof(codes) / sizeof(codes[0])); ++code)
    if (codes[code].kind == seen.kind && codes[code].bits == seen.bits) return code;
  return -1;
}

}  // namespace sede_bind::exchange
