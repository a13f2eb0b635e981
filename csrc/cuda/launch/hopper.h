// The pass over a bank by the instructions of compute capability 9.0.
#pragma once

#include "bank.h"

namespace sede_cuda {

// Whether it serves this call on the current device.
bool hopper_serves(const std::vector<BankSide>& sides, const Want& want);

// Parts of the pass over each bank, in one launch.
std::vector<Partial> hopper_pass(const Passes& passes, Scratch& scratch, Stream stream);

// Whether calls may take it. For tests.
void set_hopper(bool allowed);

}  // namespace sede_cuda
