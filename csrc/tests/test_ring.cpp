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

}  // namespace

int main() {
  return on_every_isa([] {
    test_holes();
    test_damaged();
  });
}
