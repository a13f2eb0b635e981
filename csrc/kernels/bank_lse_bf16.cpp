// The core op for bf16 queries on bf16 or int8 banks where the processor multiplies bf16 pairs
// (AVX512-BF16): both products in bf16 with fp32 sums, at twice the fp32 rate. int8 values are exact
// in bf16; their row scale stays in the columns of S and P.
#include "slice.h"

namespace sede {
namespace SEDE_ISA {

#ifdef __AVX512BF16__

namespace {

constexpr index_t W = Simd<float>::width, P = kPanel<float>;

SEDE_INLINE std::uint32_t bf16_bits(Bf16 x) { return x.bits; }
SEDE_INLINE std::uint32_t bf16_bits(std::int8_t x) { return to_bits(float(x)) >> 16; }

// A bank tile twice: pairs along D for the first product, pairs along the bank for the second.
struct PairTile {
  Pair* along_dim;   // [capacity][dim_stride], element: columns 2n and 2n + 1 of a row
  Pair* along_bank;  // [capacity / 2][bank_stride], element: rows 2n and 2n + 1 of a column
  index_t dim_stride, bank_stride;

  PairTile(Carver& carver, index_t capacity, index_t dim)
      : dim_stride(tile_stride<Pair>((dim + 1) / 2)), bank_stride(tile_stride<Pair>(dim)) {
    carver.take(along_dim, capacity * dim_stride);
    carver.take(along_bank, capacity / 2 * bank_stride);
  }

  template <class S>
  void fill(const S* data, const Matrix& m, const BankTile<float>& tile) {
    const index_t dim = m.cols, step = m.col_stride, padded = round_up(dim, W);
    const index_t rows = round_up(tile.count, kTileRows);
    for (index_t r = 0; r < rows; r += 2) {
      const bool real = r < tile.count, pair = r + 1 < tile.count;
      const S* even = data + (real ? tile.source[r] : 0) * m.row_stride;
      const S* odd = data + (pair ? tile.source[r + 1] : 0) * m.row_stride;
      std::uint16_t* first = (std::uint16_t*)(along_dim + r * dim_stride);
      std::uint16_t* second = (std::uint16_t*)(along_dim + (r + 1) * dim_stride);
      std::uint32_t* both = (std::uint32_t*)(along_bank + r / 2 * bank_stride);
      if (pair && step == 1) {
        for (index_t d = 0; d < dim; ++d) first[d] = std::uint16_t(bf16_bits(even[d]));
        for (index_t d = 0; d < dim; ++d) second[d] = std::uint16_t(bf16_bits(odd[d]));
        for (index_t d = 0; d < dim; ++d) both[d] = bf16_bits(even[d]) | bf16_bits(odd[d]) << 16;
      } else {
        for (index_t d = 0; d < dim; ++d) {
          const std::uint32_t low = real ? bf16_bits(even[d * step]) : 0;
          const std::uint32_t high = pair ? bf16_bits(odd[d * step]) : 0;
          first[d] = std::uint16_t(low);
          second[d] = std::uint16_t(high);
          both[d] = low | high << 16;
        }
      }
      if (dim % 2) first[dim] = second[dim] = 0;
      for (index_t d = dim; d < padded; ++d) both[d] = 0;
    }
  }
};

// Weights [count][P] in fp32 become pairs [count / 2][P] along the bank, in place.
void pair_weights(float* panel, index_t count) {
  if (count % 2)
    for (index_t i = 0; i < P; ++i) panel[count * P + i] = 0.0f;
  for (index_t j = 0; j < count; j += 2)
    for (index_t v = 0; v < P; v += W) {
      const VecI even = (VecI)load<VecF>(panel + j * P + v) + 0x8000;
      const VecI odd = (VecI)load<VecF>(panel + (j + 1) * P + v) + 0x8000;
      const VecI both = ((even >> 16) & 0xffff) | (odd & std::int32_t(0xffff0000));
      store(panel + j / 2 * P + v, both);
    }
}

void slice(const SliceCall<float>& call) {
  const BankLse& op = *call.op;
  const index_t dim = op.bank.cols, pairs = (dim + 1) / 2, queries = call.queries;
  Carver carver{call.scratch};
  Scratch<float> scratch(carver, op, queries, call.tiling);
  BankTile<float> tile{nullptr, 0, call.tiling.bank_rows, 0, scratch.source};
  PairTile bank(carver, scratch.capacity, dim);

  Weigher<float> w = make_weigher(op, scratch, &tile, call.query_begin, queries, call.bank_begin);
  w.state = call.state;
  w.acc_stride = call.acc_stride;
  for (int a = 0; a < 2; ++a) w.acc[a] = call.acc[a];
  start_state(call.state, op);
  const WeighFn<float> weigh_lanes = pick_weigh<float, true>(w);

  for (index_t next = call.bank_begin; next < call.bank_end;) {
    next = gather_sources(op, next, call.bank_end, tile);
    if (tile.count == 0) break;
    if (op.bank.dtype == DType::i8)
      bank.fill((const std::int8_t*)op.bank.data, op.bank, tile);
    else
      bank.fill((const Bf16*)op.bank.data, op.bank, tile);
    const index_t rows = round_up(tile.count, kTileRows);
    Ahead ahead = next_tile<float>(call, next, pairs);
    for (index_t q = 0; q < queries; q += P) {
      float* panel = scratch.panels[0] + q / P * scratch.panel_size;
      float* second = scratch.panels[1] + q / P * scratch.panel_size;
      similarities(bank.along_dim, bank.dim_stride, rows, (const Pair*)call.packed_query + q * pairs,
                   pairs, queries - q, call.tiling.depth, panel, &ahead);
      for (index_t v = 0; v < P && q + v < queries; v += W)
        weigh_lanes(w, q + v, panel + v, second + v);
      if (op.accumulators > 0) pair_weights(panel, tile.count);
      if (op.accumulators > 1) pair_weights(second, tile.count);
    }
    for (int a = 0; a < op.accumulators; ++a)
      accumulate(call, (const Pair*)scratch.panels[a], scratch.panel_size, bank.along_bank,
                 bank.bank_stride, (tile.count + 1) / 2, call.acc[a], !w.first);
    w.first = false;
  }
  if (w.first) clear_accumulators(call);
}

index_t scratch_bytes(const BankLse& op, index_t queries, const Tiling& tiling) {
  Carver carver{nullptr};
  const Scratch<float> scratch(carver, op, queries, tiling);
  const PairTile bank(carver, scratch.capacity, op.bank.cols);
  return carver.at;
}

// Panels [panel][pair of columns][P].
void pack(const Matrix& m, index_t begin, index_t count, void* out) {
  const index_t pairs = (m.cols + 1) / 2;
  for (index_t first = 0; first < count; first += P) {
    std::uint16_t* panel = (std::uint16_t*)out + 2 * first * pairs;
    for (index_t n = 0; n < 2 * pairs * P; ++n) panel[n] = 0;
    for (index_t i = 0; i < P && first + i < count; ++i) {
      const Bf16* row = (const Bf16*)m.data + (begin + first + i) * m.row_stride;
      for (index_t d = 0; d < m.cols; ++d)
        panel[(d / 2 * P + i) * 2 + d % 2] = row[d * m.col_stride].bits;
    }
  }
}

}  // namespace

const BankOps<float> bank_bf16 = {P, W, 2, 4, pack, scratch_bytes, slice};

#else

const BankOps<float> bank_bf16 = {};

#endif

}  // namespace SEDE_ISA
}  // namespace sede
