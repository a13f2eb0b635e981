// A ring as its state says it stands: keys that are refused leave holes, overwritten holes are filled
// again, and a damaged pointer or count changes nothing.
#include <limits>
#include <stdexcept>

#include "check.h"

using namespace sede_test;

namespace {

constexpr index_t kSize = 11, kDim = 5;

struct Ring {
  std::vector<float> rows = std::vector<float>(std::size_t(kSize * kDim), 0.0f);
  std::vector<index_t> ids = std::vector<index_t>(std::size_t(kSize), -1);
  index_t ptr = 0, count = 0, rejected = 0;

  // Keys 1, 2, ... in every column; those of `bad` are not finite.
  void write(index_t keys, index_t first_id, const std::vector<index_t>& bad = {}) {
    std::vector<float> values;
    std::vector<index_t> key_ids;
    for (index_t n = 0; n < keys; ++n) {
      for (index_t d = 0; d < kDim; ++d) values.push_back(float(first_id + n));
      key_ids.push_back(first_id + n);
    }
    for (index_t n : bad) values[std::size_t(n * kDim + n % kDim)] = std::numeric_limits<float>::quiet_NaN();
    const index_t kept = keys < kSize ? keys : kSize, first = keys - kept;
    sede::Enqueue op{};
    op.rows = matrix(rows, kSize, kDim);
    op.ids = ids.data();
    op.keys = {values.data() + first * kDim, kept, kDim, kDim, 1, sede::DType::f32};
    op.key_ids = key_ids.data() + first;
    sede::enqueue(op, {&ptr, &count, &rejected}, keys);
  }
  bool slot(index_t n, index_t id) const {
    const float value = id == -1 ? 0.0f : float(id);
    bool same = ids[std::size_t(n)] == id;
    for (index_t d = 0; d < kDim; ++d) same = same && rows[std::size_t(n * kDim + d)] == value;
    return same;
  }
};

void test_holes() {
  Ring ring;
  ring.write(4, 100, {1});
  expect(ring.ptr == 4 && ring.count == 3 && ring.rejected == 1, "one key of four is refused");
  expect(ring.slot(0, 100) && ring.slot(1, -1) && ring.slot(2, 102), "its slot is a hole");
  ring.write(9, 200, {0, 8});
  expect(ring.ptr == 2 && ring.rejected == 3, "once round");
  // Slots 0 and 4 to 10 hold keys or holes of the second write; 1 is filled again, or is a hole.
  expect(ring.slot(4, -1) && ring.slot(5, 201) && ring.slot(0, 207) && ring.slot(1, -1), "both holes");
  expect(ring.count == 9, "eleven slots, two holes");
  ring.write(30, 300);
  expect(ring.ptr == 10 && ring.count == kSize, "more keys than slots fill every hole");
  expect(ring.slot(9, 329) && ring.slot(10, 319), "the last eleven stay");
}

void test_damaged() {
  Ring ring;
  ring.write(6, 100);
  const Ring before = ring;
  auto refuses = [&](index_t ptr, index_t count, const std::string& what) {
    ring.ptr = ptr, ring.count = count;
    bool thrown = false;
    try {
      ring.write(3, 500);
    } catch (const std::invalid_argument& error) {
      thrown = std::string(error.what()).find("damaged") != std::string::npos;
    }
    expect(thrown, what);
    expect(ring.rows == before.rows && ring.ids == before.ids, what + " writes nothing");
    expect(ring.ptr == ptr && ring.count == count && ring.rejected == 0, what + " keeps its state");
  };
  const index_t huge = std::numeric_limits<index_t>::max();
  for (index_t ptr : {index_t(-1), kSize, huge, -huge}) refuses(ptr, 6, "a damaged pointer");
  for (index_t count : {index_t(-1), kSize + 1, huge, -huge}) refuses(6, count, "a damaged count");
  ring.ptr = before.ptr, ring.count = before.count;
  ring.write(1, 500);
  expect(ring.ptr == 7 && ring.count == 7 && ring.slot(6, 500), "a sound state goes on");
}

// Sets of up to three fragments into four slots: padded, wrapped, one refused, lengths checked.
void test_sets() {
  constexpr index_t slots = 4, longest = 3, width = 2, sets = 3;
  std::vector<float> rows(slots * longest * kDim, 9.0f), keys(sets * width * kDim, 5.0f);
  std::vector<index_t> ids(slots, -1), lengths(slots, 7), key_lengths{2, 1, 2};
  keys[(1 * width + 1) * kDim] = std::numeric_limits<float>::quiet_NaN();  // beyond its length
  keys[2 * width * kDim + 4] = std::numeric_limits<float>::infinity();
  index_t ptr = 2, count = 0, rejected = 0;
  sede::EnqueueSets op{};
  op.rows = {rows.data(), longest, kDim, kDim, 1, sede::DType::f32};
  op.slots = slots, op.slot_step = longest * kDim;
  op.lengths = lengths.data(), op.ids = ids.data();
  op.keys = {keys.data(), width, kDim, kDim, 1, sede::DType::f32};
  op.sets = sets, op.set_step = width * kDim;
  op.key_lengths = key_lengths.data();
  const sede::Ring ring{&ptr, &count, &rejected};
  sede::enqueue_sets(op, ring, sets);
  expect(ptr == 1 && count == 2 && rejected == 1, "two of three sets are stored");
  expect(ids == std::vector<index_t>({-1, -1, -2, -2}), "a refused set is a hole");
  expect(lengths == std::vector<index_t>({0, 7, 2, 1}), "a hole has length 0");
  bool right = true;
  for (index_t slot = 0; slot < slots; ++slot)
    for (index_t e = 0; e < longest * kDim; ++e) {
      const bool valid = e / kDim < lengths[std::size_t(slot)];
      const float want = slot == 1 ? 9.0f : slot >= 2 && valid ? 5.0f : 0.0f;
      right = right && rows[std::size_t(slot * longest * kDim + e)] == want;
    }
  expect(right, "zeros lie beyond each length, and in a hole");
  const std::vector<float> before = rows;
  for (index_t length : {index_t(-1), index_t(3)}) {
    key_lengths[1] = length;
    bool thrown = false;
    try {
      sede::enqueue_sets(op, ring, sets);
    } catch (const std::invalid_argument&) {
      thrown = true;
    }
    expect(thrown && rows == before && ptr == 1, "a length outside the set writes nothing");
  }
}

}  // namespace

int main() {
  return on_every_isa([] {
    test_holes();
    test_damaged();
    test_sets();
  });
}
