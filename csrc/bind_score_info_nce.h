#pragma once

#include <pybind11/pybind11.h>

// The weighted InfoNCE of given scores, forward and backward.
void bind_score_info_nce(pybind11::module_& m);
