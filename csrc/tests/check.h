// The few tools of the native tests: random matrices, a comparison, a count of failures.
#pragma once

#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "../dispatch.h"
#include "../drivers.h"

namespace sede_test {

using sede::index_t;

inline int failures = 0;

inline void expect(bool ok, const std::string& what) {
  if (ok) return;
  ++failures;
  std::printf("FAILED [%s] %s\n", sede::kernels().name, what.c_str());
}

// |got - want| <= tolerance (1 + |want|), or both the same infinity.
inline void near(double got, double want, double tolerance, const std::string& what) {
  const bool same = got == want || (std::isnan(got) && std::isnan(want));
  expect(same || std::fabs(got - want) <= tolerance * (1 + std::fabs(want)),
         what + ": got " + std::to_string(got) + ", want " + std::to_string(want));
}

template <class T>
std::vector<T> random_matrix(index_t rows, index_t columns, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  std::vector<T> values(std::size_t(rows * columns));
  const double scale = 1 / std::sqrt(double(columns > 0 ? columns : 1));
  for (T& value : values) value = T(normal(engine) * scale);
  return values;
}

inline std::vector<index_t> random_ids(index_t count, index_t groups, unsigned seed) {
  std::mt19937 engine(seed);
  std::uniform_int_distribution<index_t> group(-1, groups - 1);
  std::vector<index_t> ids(std::size_t(count), 0);
  for (index_t& id : ids) id = group(engine);
  return ids;
}

template <class T>
sede::Matrix matrix(const std::vector<T>& values, index_t rows, index_t columns) {
  return {values.data(), rows, columns, columns, 1,
          sizeof(T) == 4 ? sede::DType::f32 : sede::DType::f64};
}

// Run a test once on every instruction set of this processor; the exit code of the program.
template <class F>
int on_every_isa(F test) {
  for (const std::string& name : sede::supported_isas()) {
    sede::select_isa(name);
    test();
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}

}  // namespace sede_test
