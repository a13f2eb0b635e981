#pragma once

#include <pybind11/pybind11.h>

// The ranks of retrieval: similarities of a block, and how many lie below a bar.
void bind_ranks(pybind11::module_& m);
