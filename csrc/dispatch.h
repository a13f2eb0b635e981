// Run-time choice of the instruction set.
#pragma once

#include <string>
#include <vector>

#include "kernels/table.h"

namespace sede {

// Kernels in use: the best this processor has, unless select_isa() chose others.
const Kernels& kernels();

// Names of the sets compiled in, and of those this processor can run, from least to best.
std::vector<std::string> compiled_isas();
std::vector<std::string> supported_isas();

// Empty or "auto": the best one. Throws std::invalid_argument for a set that is unknown or that
// this processor lacks.
void select_isa(const std::string& name);

}  // namespace sede
