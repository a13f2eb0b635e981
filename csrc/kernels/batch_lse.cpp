// Backward of in-batch negatives, both sides at once: for a slice of the keys, the similarities,
// kept or computed again, become weights W_ij = sum_e g_ei r_e exp(c_e s_ij - lse_ei), and feed
// dq += W k and dk = W^T q.
#include "slice.h"

namespace sede {
namespace SEDE_ISA {
namespace {

// Queries whose weights feed one product for dk: it loads and stores the tile's dk that much more rarely.
template <class T>
constexpr index_t kBlock = 2 * kPanel<T>;

// Weights [key][kBlock] of one vector of queries and the rows of a tile, from similarities [key][panel]:
// of the tile's rows, or of all keys (`all`).
template <class T>
void gradient_weights(const Weigher<T>& w, const BatchCall<T>& call, index_t lane, const T* s_of,
                      bool all, T* weights) {
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
    const Vec s = load<Vec>(s_of + (all ? w.tile->source[j] : j) * P);
    const auto ok = w.valid(lane, w.tile->source[j], s);
    Vec weight{};
    for (int e = 0; e < w.op->exponents; ++e)
      weight += factor[e] * exp2_fast(s * w.exponent[e] - base[e]);
    store(weights + j * kBlock<T>, ok ? weight : Vec{});
  }
}

template <class T>
void slice(const BatchCall<T>& call) {
  constexpr index_t W = Simd<T>::width, P = kPanel<T>, Q = kBlock<T>;
  const BankLse& op = *call.op;
  const index_t dim = op.bank.cols, columns = round_up(dim, W);
  Carver carver{call.scratch};
  Scratch<T> scratch(carver, op, Q, call.tiling);
  BankTile<T> tile{nullptr, tile_stride<T>(dim), call.tiling.bank_rows, 0, scratch.source};
  carver.take(tile.rows, scratch.capacity * tile.stride);
  T *rows, *key_grad, *panel;
  carver.take(rows, Q * tile.stride);
  carver.take(key_grad, scratch.capacity * columns);
  carver.take(panel, scratch.panel_size);
  T* weights = scratch.panels[0];
  bool first = true;
  for (index_t next = call.bank_begin; next < call.bank_end; first = false) {
    next = fill_tile(op, next, call.bank_end, tile);
    // Whole vectors of neighbouring rows are added up where they belong.
    const bool in_place = dim == columns && tile.count > 0 && tile.dense();
    T* keys = in_place ? call.key_grad + tile.source[0] * dim : key_grad;
    for (index_t q = 0; q < op.query.rows; q += Q) {
      const index_t queries = op.query.rows - q < Q ? op.query.rows - q : Q;
      const Weigher<T> w = make_weigher(op, scratch, &tile, q, queries, call.bank_begin);
      for (index_t p = 0; p < queries; p += P) {
        const T* s = panel;
        if (op.scores)
          s = (const T*)op.scores + (q + p) * op.bank.rows;
        else
          similarities(tile.rows, tile.stride, 1, round_up(tile.count, kTileRows),
                       (const T*)call.packed_query + (q + p) * dim, dim, queries - p,
                       call.tiling.depth, panel);
        for (index_t v = 0; v < P && p + v < queries; v += W)
          gradient_weights(w, call, p + v, s + v, op.scores != nullptr, weights + p + v);
      }
      product(queries, columns, weights, 1, Q, tile.rows, tile.stride,
              call.query_grad + q * call.grad_stride, call.grad_stride, tile.count, !first);
      for (index_t i = 0; i < queries; ++i) {
        T* row = rows + i * tile.stride;
        read_row(op.query, q + i, row, 1);
        for (index_t d = dim; d < columns; ++d) row[d] = T(0);
      }
      product(tile.count, columns, weights, Q, 1, rows, tile.stride, keys, columns, queries, q > 0);
    }
    for (index_t r = 0; r < tile.count && !in_place; ++r)
      for (index_t d = 0; d < dim; ++d)
        call.key_grad[tile.source[r] * dim + d] = key_grad[r * columns + d];
  }
  if (first)
    for (index_t n = 0; n < op.query.rows * call.grad_stride; ++n) call.query_grad[n] = T(0);
}

template <class T>
index_t scratch_bytes(const BankLse& op, index_t, const Tiling& tiling) {
  Carver carver{nullptr};
  const Scratch<T> scratch(carver, op, kBlock<T>, tiling);
  T* rows;
  const index_t stride = tile_stride<T>(op.bank.cols);
  carver.take(rows, scratch.capacity * stride);
  carver.take(rows, kBlock<T> * stride);
  carver.take(rows, scratch.capacity * round_up(op.bank.cols, Simd<T>::width));
  carver.take(rows, scratch.panel_size);
  return carver.at;
}

}  // namespace

const BatchOps<float> batch_f32 = {scratch_bytes<float>, slice<float>};
const BatchOps<double> batch_f64 = {scratch_bytes<double>, slice<double>};

}  // namespace SEDE_ISA
}  // namespace sede
