// Matrices of a warp (PTX ISA 9.7.14): ldmatrix, stmatrix, mma.sync. Fragments as drawn there:
// lane l has row l / 4 and the pair of columns l % 4 of every 8 x 8 block.
#include "families.h"
#include "lanes.h"
#include "shared.h"

namespace ptx {

bool whole_warp(Warp& w, const Instruction& in, u32 mask) {
  if (mask == WHOLE_WARP) return true;
  report(w, in, Kind::CONVERGENCE, format("lanes %08x execute what takes the whole warp", mask));
  return false;
}

namespace {

constexpr u32 TRANSPOSED = 1, HALF_ACCUMULATORS = 2;

using Block8x8 = u16[8][8];

// Row r of matrix i is where lane 8 i + r points.
void load_matrices(Warp& w, const Instruction& in, u32 mask) {
  if (!whole_warp(w, in, mask)) return;
  const Slot* v = &w.block->kernel->pool[in.v[0].first];
  Block8x8 m[4];
  for (u32 i = 0; i < in.count; i++)
    for (u32 r = 0; r < 8; r++)
      shared_read(w, in, COLLECTIVE, shared_address(w, in.a, in.offset, i * 8 + r), 16, m[i][r]);
  for (u32 i = 0; i < in.count; i++) {
    u32* d = w.at<u32>(v[i]);
    for (u32 l = 0; l < LANES; l++) {
      const u32 row = l / 4, column = l % 4 * 2;
      d[l] = in.flags & TRANSPOSED ? u32(m[i][column + 1][row]) << 16 | m[i][column][row]
                                   : u32(m[i][row][column + 1]) << 16 | m[i][row][column];
    }
  }
}

void store_matrices(Warp& w, const Instruction& in, u32 mask) {
  if (!whole_warp(w, in, mask)) return;
  const Slot* v = &w.block->kernel->pool[in.v[0].first];
  for (u32 i = 0; i < in.count; i++) {
    const u32* s = w.at<u32>(v[i]);
    Block8x8 m;
    for (u32 l = 0; l < LANES; l++)
      for (u32 h = 0; h < 2; h++) {
        const u32 row = l / 4, column = l % 4 * 2 + h;
        (in.flags & TRANSPOSED ? m[column][row] : m[row][column]) = u16(s[l] >> 16 * h);
      }
    for (u32 r = 0; r < 8; r++)
      shared_write(w, in, COLLECTIVE, shared_address(w, in.a, in.offset, i * 8 + r), 16, m[r]);
  }
}

// One register of an operand holds 32 bits: one tf32, two halves or four bytes.
u32 per_register(const Instruction& in) {
  return in.type == 't' ? 1 : in.type == 's' || in.type == 'u' ? 4 : 2;
}

template <class T>
T element(const Instruction& in, u32 bits, u32 i) {
  switch (in.type) {
    case 't': return T(tf32_operand(bits));
    case 'g': return T(bf16_to_float(u16(bits >> 16 * i)));
    case 'h': return T(half_to_float(u16(bits >> 16 * i)));
    case 's': return T(s8(bits >> 8 * i));
    default: return T(u8(bits >> 8 * i));
  }
}

constexpr u32 MOST_K = 32;

// A is 16 x K: register r has rows + 8 (r odd) and the columns of group r / 2.
template <class T>
void gather_a(Warp& w, const Instruction& in, T (&a)[16][MOST_K]) {
  const u32 per = per_register(in);
  for (u32 r = 0; r < in.v[1].count; r++) {
    const u32* p = w.at<u32>(w.block->kernel->pool[in.v[1].first + r]);
    for (u32 l = 0; l < LANES; l++)
      for (u32 i = 0; i < per; i++)
        a[l / 4 + r % 2 * 8][(l % 4 + r / 2 * 4) * per + i] = element<T>(in, p[l], i);
  }
}
// B is K x 8: lane l has column l / 4.
template <class T>
void gather_b(Warp& w, const Instruction& in, T (&b)[MOST_K][8]) {
  const u32 per = per_register(in);
  for (u32 r = 0; r < in.v[2].count; r++) {
    const u32* p = w.at<u32>(w.block->kernel->pool[in.v[2].first + r]);
    for (u32 l = 0; l < LANES; l++)
      for (u32 i = 0; i < per; i++) b[(l % 4 + r * 4) * per + i][l / 4] = element<T>(in, p[l], i);
  }
}

template <class T>
void add_product(const Instruction& in, const T (&a)[16][MOST_K], const T (&b)[MOST_K][8],
                 T (&c)[16][8]) {
  for (u32 i = 0; i < 16; i++)
    for (u32 k = 0; k < in.count; k++) {
      const T left = a[i][k];
      for (u32 j = 0; j < 8; j++) c[i][j] = T(c[i][j] + left * b[k][j]);
    }
}

// Accumulators of 32 bits: register r has row + 8 (r / 2) and column + r % 2.
template <class T>
void product(Warp& w, const Instruction& in, u32 mask) {
  if (!whole_warp(w, in, mask)) return;
  T a[16][MOST_K], b[MOST_K][8], c[16][8];
  gather_a(w, in, a);
  gather_b(w, in, b);
  const Slot* pool = w.block->kernel->pool.data();
  for (u32 r = 0; r < 4; r++) {
    const T* p = w.at<T>(pool[in.v[3].first + r]);
    for (u32 l = 0; l < LANES; l++) c[l / 4 + r / 2 * 8][l % 4 * 2 + r % 2] = p[l];
  }
  add_product(in, a, b, c);
  for (u32 r = 0; r < 4; r++) {
    T* p = w.at<T>(pool[in.v[0].first + r]);
    for (u32 l = 0; l < LANES; l++) p[l] = c[l / 4 + r / 2 * 8][l % 4 * 2 + r % 2];
  }
}

// Accumulators of fp16: register r has row + 8 r and both columns.
void half_product(Warp& w, const Instruction& in, u32 mask) {
  if (!whole_warp(w, in, mask)) return;
  float a[16][MOST_K], b[MOST_K][8], c[16][8];
  gather_a(w, in, a);
  gather_b(w, in, b);
  const Slot* pool = w.block->kernel->pool.data();
  for (u32 r = 0; r < 2; r++) {
    const u32* p = w.at<u32>(pool[in.v[3].first + r]);
    for (u32 l = 0; l < LANES; l++)
      for (u32 h = 0; h < 2; h++)
        c[l / 4 + r * 8][l % 4 * 2 + h] = half_to_float(u16(p[l] >> 16 * h));
  }
  add_product(in, a, b, c);
  for (u32 r = 0; r < 2; r++) {
    u32* p = w.at<u32>(pool[in.v[0].first + r]);
    for (u32 l = 0; l < LANES; l++) {
      const float* pair = &c[l / 4 + r * 8][l % 4 * 2];
      p[l] = u32(float_to_half(pair[1])) << 16 | float_to_half(pair[0]);
    }
  }
}

void matrices(Decode& x, u32 registers, u32 memory, bool loads) {
  Instruction& in = x.in;
  const Type t = x.type(), b32{'b', 4, false};
  if (!x.has("sync") || !x.has("aligned") || !x.has("m8n8") || t.bytes != 2)
    fail("only .sync.aligned.m8n8 of .b16 is supported");
  x.has("shared");
  x.has("shared::cta");
  in.converge = Converge::WARP;
  in.count = x.has("x4") ? 4 : x.has("x2") ? 2 : 1;
  x.has("x1");
  if (x.has("trans")) in.flags |= TRANSPOSED;
  in.v[0] = loads ? x.results(registers, b32) : x.sources(registers, b32);
  if (in.v[0].count != in.count) fail("the number of registers is not that of the matrices");
  x.address(memory, in.a, in.offset);
  in.run = loads ? load_matrices : store_matrices;
}

}  // namespace

void decode_ldmatrix(Decode& x) { matrices(x, 0, 1, true); }
void decode_stmatrix(Decode& x) { matrices(x, 1, 0, false); }

void decode_mma(Decode& x) {
  Instruction& in = x.in;
  const std::string shape = x.part_like("m%un%uk%u");
  u32 m = 0, n = 0, k = 0;
  sscanf(shape.c_str(), "m%un%uk%u", &m, &n, &k);
  if (!x.has("sync") || !x.has("aligned") || !x.has("row") || !x.has("col") || m != 16 || n != 8)
    fail("only .sync.aligned.m16n8k*.row.col is supported");
  const Type c = x.type(0), b = x.type(1), a = x.type(2), d = x.type(3);
  const bool bytes = a.bytes == 1;
  if (a.kind != b.kind || a.bytes != b.bytes || c.kind != d.kind)
    fail("mixed types are not supported");
  in.type = u32(a.kind);
  in.count = k;
  in.converge = Converge::WARP;
  const u32 per = per_register(in), na = 16 * k / (LANES * per), nb = 8 * k / (LANES * per);
  const bool half = c.is('h', 2);
  const Type b32{'b', 4, false};
  in.v[0] = x.results(0, b32);
  in.v[1] = x.sources(1, b32);
  in.v[2] = x.sources(2, b32);
  in.v[3] = x.sources(3, b32);
  const u32 accumulators = half ? 2 : 4;
  if (k > MOST_K || in.v[0].count != accumulators || in.v[1].count != na ||
      in.v[2].count != nb || in.v[3].count != accumulators)
    fail("the number of registers is not that of the shape");
  if (bytes) in.run = product<s32>;
  else if (half && a.kind == 'h') in.run = half_product;
  else if (c.is('f', 4) && (a.kind == 'g' || a.kind == 'h' || a.kind == 't'))
    in.run = product<float>;
  else fail("the types are not supported");
}

}  // namespace ptx
