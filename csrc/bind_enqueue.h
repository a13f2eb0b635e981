// Registers the ring writes with the module.
#pragma once

#include <pybind11/pybind11.h>

void bind_enqueue(pybind11::module_& m);
