// What the bindings of the CUDA kernels share: how tensors are handed over.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "cuda/launch/bank.h"

namespace sede_cuda {

using Address = std::uintptr_t;

// (address, rows, columns, row stride, column stride, dtype code), strides in elements.
using MatrixTuple = std::tuple<Address, index_t, index_t, index_t, index_t, int>;
// (query ids, bank ids, limit, select, in batch)
using MatchTuple = std::tuple<Address, Address, Address, int, bool>;

// A number, or the address and dtype code of one on the device.
using NumberTuple = std::tuple<double, Address, int>;

inline void require(bool ok, const char* op, const char* what) {
  if (!ok) throw std::invalid_argument(std::string(op) + ": " + what + ".");
}

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

inline Matrix matrix(const char* op, const MatrixTuple& m) {
  const auto [address, rows, cols, row_stride, col_stride, dtype] = m;
  require(rows > 0 && cols >= 0, op, "a matrix is empty");
  require(address != 0 || cols == 0, op, "a matrix has no address");
  require(dtype == f32 || dtype == bf16 || dtype == f16 || dtype == i8, op,
          "the dtype has no kernel");
  return {pointer<const void>(address), rows, cols, row_stride, col_stride, dtype};
}

inline Match match(const char* op, const MatchTuple& m) {
  const auto [query_ids, bank_ids, limit, select, in_batch] = m;
  require(select >= keep && select <= positive, op, "the code of select is unknown");
  return {pointer<const index_t>(query_ids), pointer<const index_t>(bank_ids),
          pointer<const float>(limit), select, in_batch};
}

inline void fits(const char* op, const Matrix& query, const Matrix& bank, Address row_scale) {
  require(query.cols == bank.cols, op, "query and bank differ in width");
  require(query.dtype != i8, op, "the query must be floating");
  require((bank.dtype == i8) == (row_scale != 0), op, "an int8 bank, and no other, has row scales");
}

inline Scalars scalars_of(const char* name, const NumberTuple& temperature,
                          const NumberTuple& hardness, bool weighted) {
  const auto [tau, tau_at, tau_dtype] = temperature;
  const auto [beta, beta_at, beta_dtype] = hardness;
  for (const int dtype : {tau_dtype, beta_dtype})
    require(dtype == f32 || dtype == f64, name, "a scalar must be float32 or float64");
  return {1 / tau, weighted ? beta : 0., pointer<const void>(tau_at),
          weighted ? pointer<const void>(beta_at) : nullptr, tau_dtype, beta_dtype};
}

// Defined in bind_cuda_info_nce.cpp and bind_cuda_score_info_nce.cpp.
void bind_info_nce(pybind11::module_& m);
void bind_score_info_nce(pybind11::module_& m);

}  // namespace sede_cuda
