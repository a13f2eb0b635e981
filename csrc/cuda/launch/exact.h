// The fused pass in fp32: which passes it serves, and its launch.
#pragma once

#include "bank.h"

namespace sede_cuda {

// Whether two passes are of one shape: a launch serves them, whatever their dtypes and strides.
bool same_shape(const Passes& passes, const BankSide& a, const BankSide& b);

// Whether it serves passes of one shape.
bool exact_serves(const Passes& passes);

std::vector<Partial> exact_pass(const Passes& passes, Scratch& scratch, Stream stream);

// Whether it may be used. For tests of the pass in chunks.
void set_exact(bool allowed);

}  // namespace sede_cuda
