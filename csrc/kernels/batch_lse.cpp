// Backward of in-batch negatives, both sides at once: for a slice of the keys, the similarities are
// computed again, become weights W_ij = sum_e g_ei r_e exp(c_e s_ij - lse_ei), and feed
// dq += W k and dk = W^T q.
#include "slice.h"

namespace sede {
namespace SEDE_ISA {
namespace {

// One vector of queries against the rows of a tile: similarities in, weights out.
template <class T>
void gradient_weights(const Weigher<T>& w, const BatchCall<T>& call, index_t lane, T* panel) {
  using Vec = typename Simd<T>::Vec;
  constexpr index_t P = kPanel<T>;
  const index_t total = w.op->query.rows, first = w.query_begin + lane;
  Vec base[3]{}, factor[3]{};
  for (int e = 0; e < w.op->exponents; ++e)
    for (int n = 0; n < Simd<T>::width && lane + n < w.queries; ++n) {
      const T lse = call.lse[e * total + first + n];
      base[e][n] = (lse == kNegInf<T> ? T(0) : lse) * T(1.44269504088896340736);
      factor[e][n] = call.grad[e * total + first + n];
    }
  for (index_t j = 0; j < w.tile->count; ++j) {
    const Vec s = load<Vec>(panel + j * P);
    const auto ok = w.valid(lane, w.tile->source[j], s);
    Vec weight{};
    for (int e = 0; e < w.op->exponents; ++e)
      weight += factor[e] * exp2_fast(s * w.exponent[e] - base[e]);
    store(panel + j * P, ok ? weight : Vec{});
  }
}

template <class T>
void slice(const BatchCall<T>& call) {
  constexpr index_t W = Simd<T>::width, P = kPanel<T>;
  const BankLse& op = *call.op;
  const index_t dim = op.bank.cols, columns = round_up(dim, W);
  Carver carver{call.scratch};
  Scratch<T> scratch(carver, op, P, call.tiling);
  BankTile<T> tile{nullptr, tile_stride<T>(dim), call.tiling.bank_rows, 0, scratch.source};
  carver.take(tile.rows, scratch.capacity * tile.stride);
  T *rows, *key_grad;
  carver.take(rows, P * tile.stride);
  carver.take(key_grad, scratch.capacity * columns);
  T* panel = scratch.panels[0];
  bool first = true;
  for (index_t next = call.bank_begin; next < call.bank_end; first = false) {
    next = fill_tile(op, next, call.bank_end, tile);
    for (index_t q = 0; q < op.query.rows; q += P) {
      const index_t queries = op.query.rows - q < P ? op.query.rows - q : P;
      const Weigher<T> w = make_weigher(op, scratch, &tile, q, queries, call.bank_begin);
      similarities(tile.rows, tile.stride, round_up(tile.count, kTileRows),
                   (const T*)call.packed_query + q * dim, dim, queries, call.tiling.depth, panel);
      for (index_t v = 0; v < queries; v += W) gradient_weights(w, call, v, panel + v);
      product(queries, columns, panel, 1, P, tile.rows, tile.stride,
              call.query_grad + q * call.grad_stride, call.grad_stride, tile.count, !first);
      for (index_t i = 0; i < queries; ++i) {
        T* row = rows + i * tile.stride;
        read_row(op.query, q + i, row, 1);
        for (index_t d = dim; d < columns; ++d) row[d] = T(0);
      }
      product(tile.count, columns, panel, P, 1, rows, tile.stride, key_grad, columns, queries,
              q > 0);
    }
    for (index_t r = 0; r < tile.count; ++r)
      for (index_t d = 0; d < dim; ++d)
        call.key_grad[tile.source[r] * dim + d] = key_grad[r * columns + d];
  }
  if (first)
    for (index_t n = 0; n < op.query.rows * call.grad_stride; ++n) call.query_grad[n] = T(0);
}

template <class T>
index_t scratch_bytes(const BankLse& op, index_t, const Tiling& tiling) {
  Carver carver{nullptr};
  const Scratch<T> scratch(carver, op, kPanel<T>, tiling);
  T* rows;
  const index_t stride = tile_stride<T>(op.bank.cols);
  carver.take(rows, scratch.capacity * stride);
  carver.take(rows, kPanel<T> * stride);
  carver.take(rows, scratch.capacity * round_up(op.bank.cols, Simd<T>::width));
  return carver.at;
}

}  // namespace

const BatchOps<float> batch_f32 = {scratch_bytes<float>, slice<float>};
const BatchOps<double> batch_f64 = {scratch_bytes<double>, slice<double>};

}  // namespace SEDE_ISA
}  // namespace sede
