// Registers the weighted InfoNCE with the module.
#pragma once

#include <pybind11/pybind11.h>

void bind_info_nce(pybind11::module_& m);
