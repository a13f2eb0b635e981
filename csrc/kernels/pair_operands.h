// A tile of a bf16 or int8 bank in pairs of bf16 values, for products that multiply such pairs (see
// pairs.h). int8 values are exact in bf16; their row scale stays in the columns of S and P.
#pragma once

#include "tiles.h"

namespace sede {
namespace SEDE_ISA {

#ifdef SEDE_PAIRS

namespace {

typedef std::uint16_t VecH __attribute__((vector_size(SEDE_VEC_BYTES), may_alias));
typedef typename Arithmetic<Pair>::Vec VecPair;
constexpr index_t kHalves = SEDE_VEC_BYTES / 2;  // bf16 values in a vector

// Lane n of the result is lane n / 2 of x, or of y for an odd n: of the lower or the upper halves.
SEDE_INLINE VecPair interleave(VecH x, VecH y, int first) {
  VecH lanes{};
  for (int n = 0; n < kHalves; ++n) lanes[n] = std::uint16_t(first + n / 2 + n % 2 * kHalves);
  return (VecPair)shuffle(x, y, lanes);
}

// out[q][j] (+)= s of R queries and `count` values of `pairs` pairs of columns, which become pairs
// along D in registers. The second column of a pair is zero where there is none.
template <int R, int V>
SEDE_INLINE void pair_tile(const Bf16* in, index_t stride, index_t columns, const Pair* few,
                           index_t few_stride, float* out, index_t out_row, index_t pairs, bool add) {
  constexpr index_t W = Simd<float>::width;
  VecF sum[R][2 * V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < 2 * V; ++v) sum[r][v] = add ? load<VecF>(out + r * out_row + v * W) : VecF{};
  for (index_t p = 0; p < pairs; ++p) {
    const Bf16 *even = in + 2 * p * stride, *odd = 2 * p + 1 < columns ? even + stride : nullptr;
    VecPair both[2 * V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const VecH x = load<VecH>(even + v * kHalves), y = odd ? load<VecH>(odd + v * kHalves) : VecH{};
      both[2 * v] = interleave(x, y, 0);
      both[2 * v + 1] = interleave(x, y, kHalves / 2);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Pair q = few[r * few_stride + p];
#pragma GCC unroll 8
      for (int v = 0; v < 2 * V; ++v) Arithmetic<Pair>::add(sum[r][v], q, both[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < 2 * V; ++v) store(out + r * out_row + v * W, sum[r][v]);
}

// For any number of queries; count is a multiple of kHalves, and eight queries at most are taken at a time.
void pair_columns(const Bf16* in, index_t stride, index_t columns, index_t count, const Pair* few,
                  index_t few_stride, index_t queries, float* out, index_t out_row, index_t pairs,
                  bool add) {
  auto take = [&](auto rows, auto vectors) {
    constexpr int R = decltype(rows)::value, V = decltype(vectors)::value;
    for (index_t j = 0; j < count; j += V * kHalves) {
      if constexpr (V > 1)
        if (count - j < V * kHalves) {
          for (; j < count; j += kHalves)
            pair_tile<R, 1>(in + j, stride, columns, few, few_stride, out + j, out_row, pairs, add);
          return;
        }
      pair_tile<R, V>(in + j, stride, columns, few, few_stride, out + j, out_row, pairs, add);
    }
  };
  for (; queries > 0; queries -= 8, few += 8 * few_stride, out += 8 * out_row) switch (queries) {
      case 1: take(std::integral_constant<int, 1>(), std::integral_constant<int, 4>()); break;
      case 2: take(std::integral_constant<int, 2>(), std::integral_constant<int, 2>()); break;
      case 3: take(std::integral_constant<int, 3>(), std::integral_constant<int, 1>()); break;
      case 4: take(std::integral_constant<int, 4>(), std::integral_constant<int, 1>()); break;
      case 5: take(std::integral_constant<int, 5>(), std::integral_constant<int, 1>()); break;
      case 6: take(std::integral_constant<int, 6>(), std::integral_constant<int, 1>()); break;
      case 7: take(std::integral_constant<int, 7>(), std::integral_constant<int, 1>()); break;
      default: take(std::integral_constant<int, 8>(), std::integral_constant<int, 1>()); break;
    }
}

// A tile twice: in pairs along D for the first product, in pairs along the bank for the second. Without
// a second product, dense rows of bf16 are pairs along D where they lie.
template <>
struct Operands<Pair> {
  const Pair *s, *o;
  index_t s_row, s_step, o_row;
  bool columns, readable, lies;

  Operands(Carver& carver, const BankLse& op, index_t capacity, bool few_)
      : columns(lies_in_columns(op.bank)),
        readable(columns && op.bank.dtype == DType::bf16 && op.bank.col_stride % 2 == 0),
        lies(false),
        rows(columns ? (op.bank.cols + 1) / 2 * 2 : capacity),
        lying(nullptr),
        writing(0),
        few(few_),
        second(columns || op.accumulators > 0) {
    constexpr index_t kPage = 4096;
    const Matrix& m = op.bank;
    const index_t pairs = (m.cols + 1) / 2;
    // Rows a page apart would share cache sets.
    in_place = !second && m.dtype == DType::bf16 && m.col_stride == 1 && m.cols % kHalves == 0 &&
               m.row_stride % 2 == 0 && m.row_stride * 2 % kPage != 0 &&
               std::uintptr_t(m.data) % sizeof(Pair) == 0;
    if (columns) capacity = copied_rows(capacity);
    along_dim_row = tile_stride<Pair>(columns ? capacity : pairs);
    along_bank_row = tile_stride<Pair>(columns ? capacity / 2 : m.cols);
    for (Memory& one : memory) {
      carver.take(one.along_dim, along_dim_row * (columns ? pairs : capacity));
      carver.take(one.along_bank, second ? along_bank_row * (columns ? rows : capacity / 2) : 0);
      if (!columns) break;
    }
    s_row = columns ? 1 : along_dim_row;
    s_step = columns ? along_dim_row : 1;
    o_row = along_bank_row;
  }

  // What no tile writes, and the products read.
  void start(const Matrix& m) {
    if (columns && m.cols % 2) {
      for (const Memory& one : memory)
        for (index_t n = 0; n < along_bank_row; ++n)
          one.along_bank[m.cols * along_bank_row + n] = Pair(0);
    } else if (!columns) {
      for (index_t r = 0; r < rows; ++r)
        for (index_t n = m.cols / 2; n < along_dim_row; ++n)
          memory[0].along_dim[r * along_dim_row + n] = Pair(0);
    }
  }

  void fill(const Matrix& m, BankTile<float>& tile) {
    lies = in_place && tile.dense() && (few || tile.count % kTileRows == 0);
    if (lies) {
      s = (const Pair*)((const Bf16*)m.data + tile.source[0] * m.row_stride);
      s_row = m.row_stride / 2;
      return;
    }
    s_row = along_dim_row;
    if (m.dtype == DType::i8)
      fill_rows((const std::int8_t*)m.data, m, tile);
    else
      fill_rows((const Bf16*)m.data, m, tile);
    flip();
    writing = 0;
  }
  void fill_part(const Matrix& m, const BankTile<float>& tile, index_t from, index_t to) {
    if (m.dtype == DType::i8)
      fill_part((const std::int8_t*)m.data, m, tile, from, to);
    else
      fill_part((const Bf16*)m.data, m, tile, from, to);
  }
  void flip() {
    s = memory[writing].along_dim;
    o = memory[writing].along_bank;
    o_row = along_bank_row;
    lying = nullptr;
    writing ^= 1;
  }

  // The columns where they lie are pairs along the bank already.
  void point(const Matrix& m, const BankTile<float>& tile) {
    lying = (const Bf16*)m.data + tile.source[0];
    o = (const Pair*)lying;
    o_row = m.col_stride / 2;
  }
  void add_similarities(const Matrix& m, index_t from, index_t to, index_t count, const Pair* few,
                        index_t few_stride, index_t queries, float* out, index_t out_row) const {
    const index_t pairs = (to - from + 1) / 2;
    few += from / 2;
    if (lying)
      pair_columns(lying + from * m.col_stride, m.col_stride, m.cols - from, count, few, few_stride,
                   queries, out, out_row, pairs, from > 0);
    else
      product(queries, count, few, few_stride, 1, s + from / 2 * s_step, s_step, out, out_row, pairs,
              from > 0);
  }

 private:
  struct Memory {
    Pair* along_dim;   // rows: [capacity][D / 2]; columns: [D / 2][capacity], of columns 2n and 2n + 1
    Pair* along_bank;  // rows: [capacity / 2][D]; columns: [D][capacity / 2], of rows 2n and 2n + 1
  };
  Memory memory[2];
  index_t rows, along_dim_row, along_bank_row;
  const Bf16* lying;  // or null: the tile was copied
  int writing;
  bool few, second, in_place;  // second: there is a second product

  template <class S>
  void fill_part(const S* data, const Matrix& m, const BankTile<float>& tile, index_t from, index_t to) {
    const Memory& out = memory[writing];
    const index_t padded = round_up(tile.count, kCapacity);
    auto column = [&](index_t d) { return (std::uint16_t*)(out.along_bank + d * along_bank_row); };
    fill_columns(data, m, tile, from, to, padded, column, [&](index_t d) {
      if (d % 2 == 0 && d + 1 < m.cols) return;
      const std::uint16_t *even = column(d / 2 * 2), *odd = column(d / 2 * 2 + 1);
      std::uint32_t* both = (std::uint32_t*)(out.along_dim + d / 2 * along_dim_row);
      for (index_t n = 0; n < padded; ++n) both[n] = even[n] | std::uint32_t(odd[n]) << 16;
    });
  }

  template <class S>
  void fill_rows(const S* data, const Matrix& m, const BankTile<float>& tile) {
    const index_t dim = m.cols, padded = round_up(dim, Simd<float>::width);
    auto row = [&](index_t r) { return (std::uint16_t*)(memory[0].along_dim + r * along_dim_row); };
    for (index_t r = 0; r < round_up(tile.count, kTileRows); ++r) {
      std::uint16_t* out = row(r);
      if (r >= tile.count)
        for (index_t d = 0; d < dim; ++d) out[d] = 0;
      else if (m.col_stride == 1)
        copy_bits(data + tile.source[r] * m.row_stride, 1, out, dim);
      else
        copy_bits(data + tile.source[r] * m.row_stride, m.col_stride, out, dim);
      if (!second || r % 2 == 0) continue;
      const std::uint16_t *even = row(r - 1), *odd = out;
      std::uint32_t* both = (std::uint32_t*)(memory[0].along_bank + r / 2 * along_bank_row);
      for (index_t d = 0; d < dim; ++d) both[d] = even[d] | std::uint32_t(odd[d]) << 16;
      for (index_t d = dim; d < padded; ++d) both[d] = 0;
    }
  }

  template <class S>
  static SEDE_INLINE void copy_bits(const S* in, index_t step, std::uint16_t* out, index_t count) {
    for (index_t n = 0; n < count; ++n) out[n] = bf16_bits(in[n * step]);
  }
};

void read_elements(const Matrix& query, index_t row, Pair* out) {
  const Bf16* in = (const Bf16*)query.data + row * query.row_stride;
  for (index_t d = 0; d < query.cols; ++d) ((std::uint16_t*)out)[d] = in[d * query.col_stride].bits;
}

}  // namespace

#endif

}  // namespace SEDE_ISA
}  // namespace sede
