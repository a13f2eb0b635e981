// Registers late interaction with the module.
#pragma once

#include <pybind11/pybind11.h>

void bind_late_interaction(pybind11::module_& m);
