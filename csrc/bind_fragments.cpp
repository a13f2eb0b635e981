// Bindings of the ops on fragments: contiguous arrays by address.
#include "bind_fragments.h"

#include <cstdint>

#include "fragments.h"

namespace {

namespace py = pybind11;
using sede::index_t;
using Address = std::uintptr_t;

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

void erase(Address attention, Address lengths, index_t rows, index_t length, int dtype, int rule,
           double threshold, index_t keep_min, bool low, bool renormalize, Address out,
           Address mask) {
  const sede::EraseForward op{pointer<const void>(attention),
                              pointer(out),
                              pointer<unsigned char>(mask),
                              pointer<const index_t>(lengths),
                              rows,
                              length,
                              sede::DType(dtype),
                              {sede::Rule(rule), threshold, keep_min, low, renormalize}};
  py::gil_scoped_release release;
  sede::erase(op);
}

void erase_backward(Address grad, Address attention, Address mask, index_t rows, index_t length,
                    int dtype, bool renormalize, Address out) {
  const sede::EraseBackward op{pointer<const void>(grad),
                               pointer<const void>(attention),
                               pointer<const unsigned char>(mask),
                               pointer(out),
                               rows,
                               length,
                               sede::DType(dtype),
                               renormalize};
  py::gil_scoped_release release;
  sede::erase_backward(op);
}

}  // namespace

void bind_fragments(py::module_& m) {
  m.def("erase", &erase);
  m.def("erase_backward", &erase_backward);
}
