// Ring writes: tensors in, as the NamedTuples of sede_kernels/types.py. Each returns false, and has
// done nothing, where a tensor has to be converted first, or where Python is to say what is wrong.
#include "bind_enqueue.h"

#include <algorithm>

#include "bind_tensors.h"
#include "drivers.h"

namespace {

using sede::index_t;
using namespace sede_bind;

constexpr int kF32 = int(sede::DType::f32), kI8 = int(sede::DType::i8);

py::handle item(const py::tuple& of, int n) { return PyTuple_GET_ITEM(of.ptr(), n); }

// ids, ptr, count, rejected: the last four of a ring of `size` slots.
bool ring_of(const py::tuple& tensors, index_t size, index_t*& ids, sede::Ring& ring) {
  const auto scalar = [&](int n, index_t*& out) {
    Dense seen;
    if (!look_at(item(tensors, n), seen) || seen.dimensions != 0 || seen.code != kInt64)
      return false;
    out = reinterpret_cast<index_t*>(seen.data);
    return true;
  };
  return !item(tensors, 2).is_none() && is_vector(item(tensors, 2), kInt64, size, ids) &&
         scalar(3, ring.ptr) && scalar(4, ring.count) && scalar(5, ring.rejected);
}

bool inside(const sede::Ring& ring, index_t size) {
  return *ring.ptr >= 0 && *ring.ptr < size && *ring.count >= 0 && *ring.count <= size;
}

// Whether all of `count` numbers lie in [low, high].
bool between(const index_t* values, index_t count, index_t low, index_t high) {
  return values == nullptr || std::all_of(values, values + count, [&](index_t value) {
           return value >= low && value <= high;
         });
}

// ring: (rows, row_scale, ids, ptr, count, rejected). `named`: ids below 0 are refused.
bool enqueue(const py::tuple& tensors, const py::object& keys, const py::object& key_ids,
             bool normalize, bool named) {
  if (tensors.size() != 6) return false;
  sede::Enqueue op{};
  sede::Ring ring{};
  if (!is_matrix(item(tensors, 0), op.rows) || !is_matrix(keys, op.keys)) return false;
  const index_t size = op.rows.rows, total = op.keys.rows;
  const index_t* names = nullptr;
  if (op.keys.dtype == sede::DType::i8 || op.keys.cols != op.rows.cols ||
      (op.rows.dtype == sede::DType::i8) == item(tensors, 1).is_none() ||
      !is_vector(item(tensors, 1), kF32, size, op.row_scale) ||
      !ring_of(tensors, size, op.ids, ring) || !is_vector(key_ids, kInt64, total, names) ||
      !inside(ring, size) || (named && !between(names, total, 0, INT64_MAX)))
    return false;
  const index_t kept = std::min(total, size), skipped = total - kept;
  if (kept == 0) return true;
  op.normalize = normalize;
  op.keys.rows = kept;
  op.keys.data = static_cast<const char*>(op.keys.data) +
                 skipped * op.keys.row_stride * element_bytes(int(op.keys.dtype));
  op.key_ids = names == nullptr ? nullptr : names + skipped;
  py::gil_scoped_release release;
  sede::enqueue(op, ring, total);
  return true;
}

// ring: (rows, lengths, ids, ptr, count, rejected). `named`: ids below 0 and lengths of 0 are refused.
bool enqueue_fragments(const py::tuple& tensors, const py::object& keys, const py::object& lengths,
                       const py::object& key_ids, bool named) {
  if (tensors.size() != 6) return false;
  Dense rows, sets;
  if (!look_at(item(tensors, 0), rows) || !look_at(keys, sets)) return false;
  const index_t size = rows.size[0], total = sets.size[0], width = sets.size[1];
  sede::EnqueueSets op{};
  sede::Ring ring{};
  const index_t *names = nullptr, *counts = nullptr;
  if (rows.dimensions != 3 || sets.dimensions != 3 || rows.code >= kI8 || sets.code >= kI8 ||
      sets.size[2] != rows.size[2] || width > rows.size[1] || item(tensors, 1).is_none() ||
      !is_vector(item(tensors, 1), kInt64, size, op.lengths) ||
      !ring_of(tensors, size, op.ids, ring) || !is_vector(lengths, kInt64, total, counts) ||
      !is_vector(key_ids, kInt64, total, names) || !inside(ring, size) ||
      !between(counts, total, named ? 1 : 0, width) ||
      (named && !between(names, total, 0, INT64_MAX)))
    return false;
  const index_t kept = std::min(total, size), skipped = total - kept;
  if (kept == 0) return true;
  const index_t bytes = element_bytes(sets.code);
  op.rows = {reinterpret_cast<void*>(rows.data), rows.size[1], rows.size[2], rows.stride[1],
             rows.stride[2], sede::DType(rows.code)};
  op.slots = size, op.slot_step = rows.stride[0];
  op.keys = {reinterpret_cast<const char*>(sets.data) + skipped * sets.stride[0] * bytes, width,
             sets.size[2], sets.stride[1], sets.stride[2], sede::DType(sets.code)};
  op.sets = kept, op.set_step = sets.stride[0];
  op.key_lengths = counts == nullptr ? nullptr : counts + skipped;
  op.key_ids = names == nullptr ? nullptr : names + skipped;
  py::gil_scoped_release release;
  sede::enqueue_sets(op, ring, total);
  return true;
}

}  // namespace

void bind_enqueue(py::module_& m) {
  m.def("enqueue", &enqueue);
  m.def("enqueue_fragments", &enqueue_fragments);
}
