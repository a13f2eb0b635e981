// Results into elements of a floating dtype.
#pragma once

#include "rows.h"

namespace sede {
namespace SEDE_ISA {
namespace {

// Rounded to the nearest; nothing is written as an 8-bit integer.
template <class T>
SEDE_INLINE void narrow(T x, float& out) { out = float(x); }
template <class T>
SEDE_INLINE void narrow(T x, double& out) { out = double(x); }
template <class T>
SEDE_INLINE void narrow(T x, Bf16& out) { out.bits = float_to_bf16(float(x)); }
template <class T>
SEDE_INLINE void narrow(T x, F16& out) { out.bits = float_to_f16(float(x)); }
template <class T>
SEDE_INLINE void narrow(T, std::int8_t&) {}

}  // namespace
}  // namespace SEDE_ISA
}  // namespace sede
