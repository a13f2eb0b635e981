// What the drivers of the weighted InfoNCE share: its table, and work row by row on all threads.
#pragma once

#include <algorithm>
#include <type_traits>

#include "dispatch.h"
#include "info_nce.h"
#include "parallel.h"
#include "plan.h"

namespace sede {

inline bool in_double(const InfoNceSide& side) { return side.query.dtype == DType::f64; }

template <class T>
const InfoNceOps<T>& row_ops() {
  if constexpr (std::is_same_v<T, float>) return *kernels().info_nce_f32;
  else return *kernels().info_nce_f64;
}

// body(begin, end) over blocks of rows.
template <class F>
void over_rows(index_t rows, index_t dim, const F& body) {
  constexpr index_t kTaskElements = 1 << 16;  // less is not worth a thread
  const index_t block = std::max<index_t>(kTaskElements / std::max<index_t>(dim, 1), 1);
  const index_t tasks = (rows + block - 1) / block;
  if (tasks <= 1) return body(index_t(0), rows);
  TaskCounter counter(tasks);
  run_workers(tasks, [&] {
    for (index_t task; counter.take(task);)
      body(task * block, std::min(rows, (task + 1) * block));
  });
}

template <class T>
T* table_row(const InfoNceSide& side, int row) {
  return static_cast<T*>(side.table) + row * side.query.rows;
}

}  // namespace sede
