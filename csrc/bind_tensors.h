// Tensors as Python shows them: attributes read through Python's C interface, nothing of torch. A
// call looks at each tensor once here, which takes a fraction of the same in Python.
#pragma once

#include <pybind11/pybind11.h>

#include "bind_checks.h"

namespace sede_bind {

namespace py = pybind11;

// After the codes of sede::DType.
constexpr int kInt64 = 5, kBool = 6, kDtypes = 7;
constexpr int kDimensions = 8;  // at most

struct Names {
  PyObject* dtypes[kDtypes] = {};
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* stride = PyUnicode_InternFromString("stride");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
};

inline Names& names() {
  static Names* held = new Names();  // for as long as the process lives
  return *held;
}

// The dtype objects of torch, in the order of their codes.
inline void set_dtypes(const py::tuple& dtypes) {
  require(dtypes.size() == std::size_t(kDtypes), "set_dtypes", "there must be seven dtypes");
  for (int code = 0; code < kDtypes; ++code)
    names().dtypes[code] = py::object(dtypes[code]).release().ptr();
}

inline index_t element_bytes(int code) {
  constexpr index_t bytes[kDtypes] = {4, 8, 2, 2, 1, 8, 1};
  return bytes[code];
}

// A dense tensor on the CPU.
struct Dense {
  Address data = 0;
  int dimensions = 0, code = -1;
  index_t size[kDimensions] = {}, stride[kDimensions] = {};

  index_t elements() const {
    index_t count = 1;
    for (int d = 0; d < dimensions; ++d) count *= size[d];
    return count;
  }

  bool contiguous() const {
    if (elements() == 0) return true;
    index_t step = 1;
    for (int d = dimensions - 1; d >= 0; --d) {
      if (size[d] != 1 && stride[d] != step) return false;
      step *= size[d];
    }
    return true;
  }

  sede::Matrix matrix() const {
    return {reinterpret_cast<void*>(data), size[0], size[1], stride[0], stride[1],
            sede::DType(code)};
  }
};

inline bool read_sizes(PyObject* sizes, int& dimensions, index_t* out) {
  if (!PyTuple_Check(sizes) || PyTuple_GET_SIZE(sizes) > kDimensions) return false;
  dimensions = int(PyTuple_GET_SIZE(sizes));
  for (int d = 0; d < dimensions; ++d) {
    PyObject* size = PyTuple_GET_ITEM(sizes, d);
    if (!PyLong_Check(size)) return false;
    out[d] = PyLong_AsSsize_t(size);
    if (out[d] < 0) return false;
  }
  return true;
}

// False where it is anything else: sparse, nested, wrapped, elsewhere, of another dtype.
inline bool look_at(PyObject* tensor, Dense& out) {
  const Names& of = names();
  struct Scope {
    bool ok = false;
    ~Scope() {
      if (!ok) PyErr_Clear();
    }
  } scope;
  const auto attribute = [&](PyObject* name) {
    return py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, name));
  };
  const auto call = [&](PyObject* name) {
    return py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, name));
  };
  const py::object dtype = attribute(of.dtype);
  if (!dtype) return false;
  out.code = -1;
  for (int code = 0; code < kDtypes; ++code)
    if (dtype.ptr() == of.dtypes[code]) out.code = code;
  if (out.code < 0) return false;
  const py::object on_cpu = attribute(of.is_cpu);
  if (!on_cpu || on_cpu.ptr() != Py_True) return false;
  const py::object shape = attribute(of.shape);
  if (!shape || !read_sizes(shape.ptr(), out.dimensions, out.size)) return false;
  const py::object stride = call(of.stride);
  int strides = 0;
  if (!stride || !read_sizes(stride.ptr(), strides, out.stride) || strides != out.dimensions)
    return false;
  const py::object address = call(of.data_ptr);
  if (!address) return false;
  out.data = Address(PyLong_AsUnsignedLongLong(address.ptr()));
  if (PyErr_Occurred()) return false;
  scope.ok = true;
  return out.data != 0 || out.elements() == 0;
}

inline bool look_at(py::handle tensor, Dense& out) { return look_at(tensor.ptr(), out); }

// (rows, columns) of any strides.
inline bool is_matrix(py::handle tensor, sede::Matrix& out) {
  Dense seen;
  if (!look_at(tensor, seen) || seen.dimensions != 2 || seen.code > int(sede::DType::i8))
    return false;
  out = seen.matrix();
  return true;
}

// `size` contiguous elements of this dtype; None is null.
template <class T>
bool is_array(py::handle tensor, int code, index_t size, T*& out) {
  out = nullptr;
  if (tensor.is_none()) return true;
  Dense seen;
  if (!look_at(tensor, seen) || seen.code != code || seen.elements() != size || !seen.contiguous())
    return false;
  out = reinterpret_cast<T*>(seen.data);
  return true;
}

// As `is_array`, of one dimension: what a caller passes.
template <class T>
bool is_vector(py::handle tensor, int code, index_t size, T*& out) {
  out = nullptr;
  if (tensor.is_none()) return true;
  Dense seen;
  if (!look_at(tensor, seen) || seen.code != code || seen.dimensions != 1 ||
      seen.size[0] != size || !seen.contiguous())
    return false;
  out = reinterpret_cast<T*>(seen.data);
  return true;
}

// Memory for results: raises where it is not what was asked for.
template <class T = void>
T* results(const char* op, const char* name, py::handle tensor, int code, index_t size,
           bool or_nothing = false) {
  Dense seen;
  const bool dense = !tensor.is_none() && look_at(tensor, seen);
  if (or_nothing && (tensor.is_none() || (dense && seen.elements() == 0))) return nullptr;
  if (!dense || seen.code != code || seen.elements() != size || !seen.contiguous())
    throw std::invalid_argument(std::string(op) + ": " + name + " must be " +
                                std::to_string(size) +
                                " contiguous elements of its dtype on the CPU.");
  return reinterpret_cast<T*>(seen.data);
}

// As `results`, null where there are no elements: not wanted.
template <class T = void>
T* wanted(const char* op, const char* name, py::handle tensor, int code, index_t size) {
  return results<T>(op, name, tensor, code, size, true);
}

}  // namespace sede_bind
