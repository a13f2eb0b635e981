// Tensors as Python shows them, nothing of torch: through DLPack's exchange where there is one, else
// by attributes. A call looks at each tensor once here, which takes a fraction of the same in Python.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>

#include "bind_checks.h"
#include "bind_exchange.h"

namespace sede_bind {

namespace py = pybind11;

// After the codes of sede::DType.
constexpr int kInt64 = 5, kBool = 6, kDtypes = 7;
constexpr int kDimensions = 8;  // at most

struct Names {
  PyObject* dtypes[kDtypes] = {};
  PyObject* classes[2] = {};  // Tensor and Parameter
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* stride = PyUnicode_InternFromString("stride");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
  PyObject* is_neg = PyUnicode_InternFromString("is_neg");
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

// The classes of plain tensors.
inline void set_classes(const py::tuple& classes) {
  require(classes.size() == 2, "set_classes", "there must be two classes");
  for (std::size_t n = 0; n < 2; ++n) names().classes[n] = py::object(classes[n]).release().ptr();
}

inline bool is_plain_class(PyObject* tensor) {
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(tensor));
  return type == names().classes[0] || type == names().classes[1];
}

// None, or a tensor of no other class, whose sign does not wait to be applied.
inline bool is_plain(py::handle tensor) {
  if (tensor.is_none()) return true;
  if (!is_plain_class(tensor.ptr())) return false;
  const py::object negated =
      py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor.ptr(), names().is_neg));
  if (!negated) PyErr_Clear();
  return negated.ptr() == Py_False;
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

// False where nothing is offered, or the tensor is no plain dense one on the CPU: look again then.
inline bool exchanged(PyObject* tensor, Dense& out) {
  const exchange::Functions* of = exchange::functions();
  if (of == nullptr || !is_plain_class(tensor)) return false;
  exchange::View seen{};
  if (of->look(tensor, &seen) != 0) {
    PyErr_Clear();
    return false;
  }
  out.code = exchange::code_of(seen);
  if (seen.device != exchange::kCpu || out.code < 0 || seen.dimensions < 0 ||
      seen.dimensions > kDimensions || (seen.dimensions > 0 && seen.stride == nullptr))
    return false;
  out.dimensions = seen.dimensions;
  std::copy_n(seen.size, seen.dimensions, out.size);
  std::copy_n(seen.stride, seen.dimensions, out.stride);
  out.data = reinterpret_cast<Address>(seen.data) + Address(seen.offset);
  return out.data != 0 || out.elements() == 0;
}

// False where it is anything else: sparse, nested, wrapped, elsewhere, of another dtype.
inline bool look_at(PyObject* tensor, Dense& out) {
  if (exchanged(tensor, out)) return true;
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
