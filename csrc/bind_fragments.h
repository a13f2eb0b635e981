// Registers the ops on fragments with the module.
#pragma once

#include <pybind11/pybind11.h>

void bind_fragments(pybind11::module_& m);
