// What the bindings check of every call: codes, sizes and addresses that belong together. Whether an
// address holds what is said of it, only the caller can know (sede_kernels/backends/cpu/_native.py).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

#include "kernels/api.h"

namespace sede_bind {

using sede::index_t;
using Address = std::uintptr_t;

// (address, rows, columns, row stride, column stride, dtype code), strides in elements.
using MatrixTuple = std::tuple<Address, index_t, index_t, index_t, index_t, int>;

inline void require(bool ok, const char* op, const char* what) {
  if (!ok) throw std::invalid_argument(std::string(op) + ": " + what + ".");
}

// Array of `size` elements: an address unless it is empty.
template <class T = void>
T* array(const char* op, const char* name, Address address, index_t size) {
  require(size >= 0, op, "a size is negative");
  if (address == 0 && size > 0)
    throw std::invalid_argument(std::string(op) + ": " + name + " has no address.");
  return reinterpret_cast<T*>(address);
}

// Array that may be left out.
template <class T = void>
T* optional(Address address) {
  return reinterpret_cast<T*>(address);
}

inline sede::DType dtype_of(const char* op, int code) {
  require(code >= int(sede::DType::f32) && code <= int(sede::DType::i8), op,
          "the dtype code is unknown");
  return sede::DType(code);
}

inline sede::Matrix matrix(const char* op, const char* name, const MatrixTuple& m) {
  const auto [address, rows, columns, row_stride, column_stride, code] = m;
  require(rows >= 0 && columns >= 0, op, "a matrix has a negative size");
  return {array(op, name, address, rows > 0 ? columns : 0), rows, columns, row_stride,
          column_stride, dtype_of(op, code)};
}

inline sede::Select select_of(const char* op, int code) {
  require(code >= int(sede::Select::keep) && code <= int(sede::Select::positive), op,
          "the code of select is unknown");
  return sede::Select(code);
}

}  // namespace sede_bind
