// The weighted InfoNCE of given scores. A block of rows is taken in chunks of columns: the scores
// are brought into a tile, which makes rows of any stride dense; what does not count becomes -inf.
#include "narrow.h"
#include "score_info_nce_api.h"
#include "table.h"

namespace sede {
namespace SEDE_ISA {
namespace {

constexpr index_t kChunk = 256;  // columns: a tile of 16 rows stays in the innermost cache
constexpr double kLog2E = 1.44269504088896340736;

// [rows][kChunk] scores, then one row each of negatives and further positives.
template <class T>
struct Tile {
  T *scores, *negatives, *further;
  Tile(char* memory, index_t rows)
      : scores((T*)memory), negatives(scores + rows * kChunk), further(negatives + kChunk) {}
};

index_t scratch(index_t rows) { return (rows + 2) * kChunk * index_t(sizeof(double)); }

// Scores that lie as columns are read along them.
SEDE_INLINE bool along_columns(const Matrix& m) { return m.row_stride == 1 && m.col_stride != 1; }

template <class T>
void read_tile(const Matrix& m, index_t begin, index_t rows, index_t first, index_t count, T* out) {
  with_type(m.dtype, m.data, [&](auto* data) {
    data += begin * m.row_stride + first * m.col_stride;
    if (along_columns(m)) {
      for (index_t n = 0; n < count; ++n)
        for (index_t r = 0; r < rows; ++r)
          out[r * kChunk + n] = T(widen(data[r + n * m.col_stride]));
    } else {
      for (index_t r = 0; r < rows; ++r)
        copy_row(data + r * m.row_stride, m.col_stride, out + r * kChunk, 1, count);
    }
  });
}

template <class T>
void write_tile(const T* tile, const Matrix& m, index_t begin, index_t rows, index_t first,
                index_t count) {
  with_type(m.dtype, m.data, [&](auto* typed) {
    auto* data = const_cast<std::remove_const_t<std::remove_pointer_t<decltype(typed)>>*>(typed);
    data += begin * m.row_stride + first * m.col_stride;
    if (along_columns(m)) {
      for (index_t n = 0; n < count; ++n)
        for (index_t r = 0; r < rows; ++r) narrow(tile[r * kChunk + n], data[r + n * m.col_stride]);
    } else {
      for (index_t r = 0; r < rows; ++r)
        for (index_t n = 0; n < count; ++n)
          narrow(tile[r * kChunk + n], data[r * m.row_stride + n * m.col_stride]);
    }
  });
}

// From the scores of a row to those of its negatives and of its further positives.
template <class T>
void choose(const ScoreCall& call, index_t row, index_t first, index_t count, const T* s,
            const Tile<T>& tile) {
  const T none = kNegInf<T>;
  T *negatives = tile.negatives, *further = tile.further;
  if (call.valid) {
    const unsigned char* valid = call.valid + row * call.valid_row + first * call.valid_col;
    const index_t step = call.valid_col;
    for (index_t n = 0; n < count; ++n) negatives[n] = valid[n * step] ? s[n] : none;
  } else {
    for (index_t n = 0; n < count; ++n) negatives[n] = s[n];
  }
  if (call.own && row >= first && row < first + count) negatives[row - first] = none;
  if (call.further)
    for (index_t n = 0; n < count; ++n) further[n] = none;
  if (call.key_ids) {
    const index_t* key = call.key_ids + first;
    const index_t id = call.ids && !call.keep ? call.ids[row] : -1;
    if (call.further && id != -1)
      for (index_t n = 0; n < count; ++n) further[n] = key[n] == id ? negatives[n] : none;
    for (index_t n = 0; n < count; ++n)
      negatives[n] = ((key[n] == -1) | (key[n] == id)) ? none : negatives[n];
  }
  for (index_t n = count; n % Simd<T>::width; ++n) negatives[n] = further[n] = none;
}

template <class V>
SEDE_INLINE double sum_of(V v) {
  double total = 0;
  for (unsigned n = 0; n < sizeof(V) / sizeof(v[0]); ++n) total += double(v[n]);
  return total;
}

// The first score that equals `wanted`, or is NaN.
template <class T>
index_t place_of(const T* s, T wanted, bool odd) {
  index_t n = 0;
  while (odd ? s[n] == s[n] : s[n] != wanted) ++n;
  return n;
}

// Sums of scores that rise: what was summed is brought to the new reference.
SEDE_INLINE void raise(ScoreSums& sums, double most, const double* exponent, int exponents) {
  const double step = sums.most - most;  // -inf at first, beside sums of 0
  for (int e = 0; e < exponents && step > -double(kInfF); ++e) {
    const double factor = exp2_fast(splat<VecD>(step * exponent[e] * kLog2E))[0];
    sums.moment[e] = factor * (sums.moment[e] + sums.sum[e] * step);
    sums.sum[e] *= factor;
  }
  sums.most = most;
}

// Adds `count` scores, those that are -inf left out; the first one is of column `first`.
template <class T, int E>
void add(const T* s, index_t first, index_t count, const double* exponent, bool moments,
         ScoreSums& sums) {
  using Vec = typename Simd<T>::Vec;
  using Int = typename Simd<T>::Int;
  constexpr index_t W = Simd<T>::width;
  const T none = kNegInf<T>;
  Vec peak = splat<Vec>(none);
  Int number{}, odd{};
  for (index_t n = 0; n < count; n += W) {
    const Vec x = load<Vec>(s + n);
    number -= x != none;
    odd |= x != x;
    peak = x > peak ? x : peak;
  }
  sums.count += index_t(sum_of(number));
  if (any(odd)) {  // a NaN is the largest there is
    if (sums.most == sums.most) sums.column = first + place_of(s, T(0), true);
    sums.most = __builtin_nan("");
    for (int e = 0; e < E; ++e) sums.sum[e] = sums.moment[e] = sums.most;
    return;
  }
  T most = none;
  for (index_t n = 0; n < W; ++n) most = peak[n] > most ? peak[n] : most;
  if (most == none) return;
  if (double(most) > sums.most) {
    raise(sums, double(most), exponent, E);
    sums.column = first + place_of(s, most, false);
  }
  const T base = T(sums.most);
  Vec total[E] = {}, moment[E] = {};
  T scale[E];
  for (int e = 0; e < E; ++e) scale[e] = T(exponent[e] * kLog2E);
  for (index_t n = 0; n < count; n += W) {
    const Vec x = load<Vec>(s + n);
    const Int counts = x != none;
    const Vec below = counts ? x - base : Vec{};
    for (int e = 0; e < E; ++e) {
      Vec p = exp2_fast(below * scale[e]);
      p = counts ? p : Vec{};
      total[e] += p;
      if (moments) moment[e] += p * below;
    }
  }
  for (int e = 0; e < E; ++e) {
    sums.sum[e] += sum_of(total[e]);
    sums.moment[e] += sum_of(moment[e]);
  }
}

template <class T>
void sums_as(const ScoreCall& call, index_t begin, index_t end, char* memory, ScoreRow* out) {
  const Tile<T> tile(memory, end - begin);
  const ScoreSums nothing{-double(kInfF), -1, 0, {0, 0}, {0, 0}};
  for (index_t r = 0; r < end - begin; ++r) out[r] = {nothing, nothing};
  const double further[2] = {call.inverse, 0};
  for (index_t first = 0; first < call.scores.cols; first += kChunk) {
    const index_t rest = call.scores.cols - first, count = rest < kChunk ? rest : kChunk;
    read_tile(call.scores, begin, end - begin, first, count, tile.scores);
    for (index_t r = 0; r < end - begin; ++r) {
      choose(call, begin + r, first, count, tile.scores + r * kChunk, tile);
      if (call.exponents == 1)
        add<T, 1>(tile.negatives, first, count, call.exponent, call.moments, out[r].negatives);
      else
        add<T, 2>(tile.negatives, first, count, call.exponent, call.moments, out[r].negatives);
      if (call.further) add<T, 2>(tile.further, first, count, further, true, out[r].further);
    }
  }
}

// grad e^{c (s - most) - shift} of a vector of scores.
template <class T>
struct Term {
  using Vec = typename Simd<T>::Vec;
  T factor, most, scale, shift;
  Term(double grad, double reference, double exponent, double log)
      : factor(T(grad)), most(T(reference)), scale(T(exponent * kLog2E)), shift(T(log * kLog2E)) {}
  SEDE_INLINE Vec at(Vec s) const { return factor * exp2_fast((s - most) * scale - shift); }
};

template <class T>
void gradient_row(const ScoreCall& call, const ScoreFactors& f, index_t count, const Tile<T>& tile,
                  T* out) {
  using Vec = typename Simd<T>::Vec;
  const T none = kNegInf<T>;
  const Term<T> first(f.grad[0], f.hardest, call.exponent[0], f.shift[0]);
  const Term<T> second(f.grad[1], f.hardest, call.exponent[1], f.shift[1]);
  const Term<T> further(f.extra_grad, f.extra_most, call.inverse, f.extra_shift);
  for (index_t n = 0; n < count; n += Simd<T>::width) {
    const Vec s = load<Vec>(tile.negatives + n);
    Vec grad = first.at(s);
    if (call.exponents == 2) grad += second.at(s);
    grad = s != none ? grad : Vec{};
    if (call.further) {
      const Vec x = load<Vec>(tile.further + n);
      grad = x != none ? further.at(x) + T(f.extra_grad_1) : grad;
    }
    store(out + n, grad);
  }
}

template <class T>
void gradient_as(const ScoreCall& call, const ScoreFactors* factors, index_t begin, index_t end,
                 char* memory, const Matrix& out) {
  const Tile<T> tile(memory, end - begin);
  for (index_t first = 0; first < call.scores.cols; first += kChunk) {
    const index_t rest = call.scores.cols - first, count = rest < kChunk ? rest : kChunk;
    read_tile(call.scores, begin, end - begin, first, count, tile.scores);
    for (index_t r = 0; r < end - begin; ++r) {
      T* row = tile.scores + r * kChunk;
      choose(call, begin + r, first, count, row, tile);
      gradient_row(call, factors[r], count, tile, row);
      const index_t own = begin + r - first;
      if (call.own && own >= 0 && own < count) row[own] = T(factors[r].positive);
    }
    write_tile(tile.scores, out, begin, end - begin, first, count);
  }
}

void sums(const ScoreCall& call, index_t begin, index_t end, char* memory, ScoreRow* out) {
  if (call.scores.dtype == DType::f64) return sums_as<double>(call, begin, end, memory, out);
  sums_as<float>(call, begin, end, memory, out);
}

void gradient(const ScoreCall& call, const ScoreFactors* factors, index_t begin, index_t end,
              char* memory, const Matrix& out) {
  if (call.scores.dtype == DType::f64)
    return gradient_as<double>(call, factors, begin, end, memory, out);
  gradient_as<float>(call, factors, begin, end, memory, out);
}

void read(const Matrix& column, double* out) {
  with_type(column.dtype, column.data, [&](auto* data) {
    for (index_t n = 0; n < column.rows; ++n) out[n] = double(widen(data[n * column.row_stride]));
  });
}

void write(const double* values, const Matrix& column) {
  with_type(column.dtype, column.data, [&](auto* typed) {
    auto* data = const_cast<std::remove_const_t<std::remove_pointer_t<decltype(typed)>>*>(typed);
    for (index_t n = 0; n < column.rows; ++n) narrow(values[n], data[n * column.row_stride]);
  });
}

}  // namespace

extern const ScoreOps score_ops = {scratch, sums, gradient, read, write};

}  // namespace SEDE_ISA
}  // namespace sede
