// Similarities of a block, and how many lie below a bar both ways, against loops in double: rows and
// columns of every layout, sizes about the panels, ties, NaN, and equal rows at different places.
#include <limits>

#include "../ranks.h"
#include "check.h"

using namespace sede_test;

namespace {

template <class T>
void test_block(index_t rows, index_t columns, index_t dim, bool in_columns) {
  // Whole numbers: products are exact, and ties are many.
  std::vector<T> left = random_matrix<T>(rows, dim, 1), right = random_matrix<T>(columns, dim, 2);
  for (auto* side : {&left, &right})
    for (T& x : *side) x = std::round(3 * x * T(std::sqrt(double(dim))) / 2);
  if (columns > 3 && dim > 0) right[std::size_t((columns - 2) * dim)] = std::numeric_limits<T>::quiet_NaN();
  std::vector<T> turned(right.size());
  for (index_t j = 0; j < columns; ++j)
    for (index_t d = 0; d < dim; ++d)
      turned[std::size_t(d * columns + j)] = right[std::size_t(j * dim + d)];
  const sede::Matrix a = matrix(left, rows, dim);
  sede::Matrix b = matrix(right, columns, dim);
  if (in_columns) b.data = turned.data(), b.row_stride = 1, b.col_stride = columns;

  std::vector<T> scores(std::size_t(rows * columns), T(7));
  sede::block_scores(a, b, a.dtype, scores.data());
  std::vector<T> bars[2];
  std::vector<index_t> below[2], want[2];
  for (int side = 0; side < 2; ++side) {
    const index_t count = side ? columns : rows;
    for (index_t n = 0; n < count; ++n) bars[side].push_back(T(n % 7 - 3));
    below[side].assign(std::size_t(count), 5);
    want[side].assign(std::size_t(count), 5);
  }
  for (index_t i = 0; i < rows; ++i)
    for (index_t j = 0; j < columns; ++j) {
      double s = 0;
      for (index_t d = 0; d < dim; ++d)
        s += double(left[std::size_t(i * dim + d)]) * double(right[std::size_t(j * dim + d)]);
      near(double(scores[std::size_t(i * columns + j)]), s, 0, "score");
      want[0][std::size_t(i)] += s < double(bars[0][std::size_t(i)]);
      want[1][std::size_t(j)] += s < double(bars[1][std::size_t(j)]);
    }
  sede::count_below(a, b, a.dtype,
                    {bars[0].data(), bars[1].data(), below[0].data(), below[1].data()});
  for (int side = 0; side < 2; ++side)
    for (std::size_t n = 0; n < want[side].size(); ++n)
      expect(below[side][n] == want[side][n], "count below");
}

// One row of odd numbers everywhere: every score is the same to the bit, in both directions.
void test_equal_rows() {
  const index_t dim = 301, rows = 77, columns = 263;
  const std::vector<float> row = random_matrix<float>(1, dim, 3);
  std::vector<float> left, right;
  for (index_t i = 0; i < rows; ++i) left.insert(left.end(), row.begin(), row.end());
  for (index_t j = 0; j < columns; ++j) right.insert(right.end(), row.begin(), row.end());
  std::vector<float> scores(std::size_t(rows * columns));
  const sede::Matrix a = matrix(left, rows, dim), b = matrix(right, columns, dim);
  sede::block_scores(a, b, sede::DType::f32, scores.data());
  for (float s : scores) expect(s == scores[0], "equal rows");
  const std::vector<float> bars(std::size_t(columns), scores[0]);
  std::vector<index_t> below[2];
  below[0].assign(std::size_t(rows), 0), below[1].assign(std::size_t(columns), 0);
  sede::count_below(a, b, sede::DType::f32,
                    {bars.data(), bars.data(), below[0].data(), below[1].data()});
  for (const auto& side : below)
    for (index_t n : side) expect(n == 0, "a tie is not below");
}

void test_all() {
  for (const index_t rows : {0, 1, 2, 17, 33, 130, 300})
    for (const index_t columns : {0, 1, 5, 16, 129, 400})
      for (const index_t dim : {0, 1, 3, 16, 70}) {
        test_block<float>(rows, columns, dim, false);
        test_block<float>(rows, columns, dim, true);
        test_block<double>(rows, columns, dim, false);
      }
  test_equal_rows();
}

}  // namespace

int main() { return on_every_isa(test_all); }
