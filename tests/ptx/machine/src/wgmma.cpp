// Products of a warpgroup (PTX ISA 9.7.15). A product reads shared memory and writes its
// accumulators as late as the program allows: at the wait_group that waits for it.
#include "families.h"
#include "lanes.h"
#include "shared.h"

namespace ptx {
namespace {

enum Flag : u32 { TRANSPOSE_A = 1, TRANSPOSE_B = 2, NEGATE_A = 4, NEGATE_B = 8 };
enum Busy : u8 { WRITTEN = 1, READ = 2 };

u32 slot_index(Slot slot) { return slot.offset / SLOT_ALIGNMENT; }

// A matrix descriptor (9.7.15.5): addresses and distances in units of 16 bytes.
struct Descriptor {
  u32 start, leading, stride, base_offset, swizzle;  // swizzle: 0 none, 1 128, 2 64, 3 32 bytes
  explicit Descriptor(u64 d)
      : start(u32(d & 0x3fff) << 4), leading(u32(d >> 16 & 0x3fff) << 4),
        stride(u32(d >> 32 & 0x3fff) << 4), base_offset(u32(d >> 49 & 7)), swizzle(u32(d >> 62)) {}
  u32 row_bytes() const { return swizzle ? 256u >> swizzle : 16; }  // of an atom of 8 rows
  u32 pattern() const { return swizzle ? 16u >> swizzle : 1; }      // rows of 128 bytes
  u32 swizzled(u32 address) const { return address ^ ((address >> 7 & (pattern() - 1)) << 4); }
};

// Addresses of the pieces of 16 bytes of one step over K: for K-major matrices two a row, for
// MN-major ones rows / 8 for every k.
void collect(std::vector<u32>& chunks, const Descriptor& d, u32 rows, bool transposed) {
  if (!transposed) {
    for (u32 r = 0; r < rows; r++)
      for (u32 half = 0; half < 2; half++)
        chunks.push_back(d.swizzled(d.start + r % 8 * d.row_bytes() + r / 8 * d.stride +
                                    half * (d.swizzle ? 16 : d.leading)));
    return;
  }
  const u32 per_atom = d.row_bytes() / 16;
  const u32 next_block = d.swizzle ? d.leading : d.stride;
  const u32 next_k = d.swizzle ? d.stride : d.leading;
  for (u32 k = 0; k < 16; k++)
    for (u32 b = 0; b < rows / 8; b++)
      chunks.push_back(d.swizzled(d.start + b % per_atom * 16 + b / per_atom * next_block +
                                  k % 8 * d.row_bytes() + k / 8 * next_k));
}

void check_pattern(Warp& w, const Instruction& in, const Descriptor& d, char operand) {
  const u32 row = d.start >> 7 & (d.pattern() - 1);
  if (d.swizzle && row != (d.base_offset & (d.pattern() - 1)))
    report(w, in, Kind::SWIZZLE,
           format("%c starts at offset %u, in row %u of the swizzle pattern of %u bytes, and its "
                  "base offset says %u", operand, d.start - SHARED_BASE, row, d.pattern() * 128,
                  d.base_offset));
}

// wgmma.fence: the registers must not have been touched since the last one.
void check_fence(Warp& w, const Instruction& in) {
  if (!w.fences) {
    report(w, in, Kind::WGMMA_FENCE, "no wgmma.fence comes before the first wgmma.mma_async");
    return;
  }
  const Slot* pool = w.block->kernel->pool.data();
  for (u32 part = 0; part < 2; part++)
    for (u32 i = 0; i < in.v[part].count; i++) {
      const u32 slot = slot_index(pool[in.v[part].first + i]);
      const bool in_flight = w.busy[slot] & WRITTEN;
      if (w.touched[slot] == w.fences + 1)
        report(w, in, Kind::WGMMA_FENCE,
               part ? "a register of A was accessed after the last wgmma.fence"
                    : "an accumulator was accessed after the last wgmma.fence");
      else if (in_flight && (part || w.written_by[slot] != in.count))
        report(w, in, Kind::WGMMA_EARLY,
               part ? "a register of A is still written by an unfinished wgmma"
                    : "an unfinished wgmma of another shape writes the accumulators");
      else
        continue;
      return;
    }
}

u32 depth(const Instruction& in) { return in.type == 't' ? 8 : 16; }

float half_element(const Instruction& in, u16 bits) {
  return in.type == 'h' ? half_to_float(bits) : bf16_to_float(bits);
}

void read_a_registers(Warp& w, const Instruction& in, std::vector<float>& a) {
  const u32 k = depth(in);
  a.resize(16 * k);
  for (u32 r = 0; r < in.v[1].count; r++) {
    const u32* p = w.at<u32>(w.block->kernel->pool[in.v[1].first + r]);
    for (u32 l = 0; l < LANES; l++) {
      float* row = &a[(l / 4 + r % 2 * 8) * k];
      if (in.type == 't') {
        row[l % 4 + r / 2 * 4] = tf32_operand(p[l]);
        continue;
      }
      for (u32 h = 0; h < 2; h++)
        row[(l % 4 + r / 2 * 4) * 2 + h] = half_element(in, u16(p[l] >> 16 * h));
    }
  }
}

// The 16 rows of A that belong to this warp.
void collect_a(Warp& w, const Instruction& in, std::vector<u32>& chunks) {
  const Descriptor d(w.at<u64>(in.a)[0]);
  check_pattern(w, in, d, 'A');
  std::vector<u32> all;
  const u32 quarter = w.id % 4;
  collect(all, d, 64, in.flags & TRANSPOSE_A);
  if (!(in.flags & TRANSPOSE_A)) {
    chunks.assign(all.begin() + quarter * 32, all.begin() + quarter * 32 + 32);
    return;
  }
  for (u32 k = 0; k < 16; k++)
    for (u32 b = 0; b < 2; b++) chunks.push_back(all[k * 8 + quarter * 2 + b]);
}

bool begin_reads(Warp& w, const Instruction& in, Wgmma& product) {
  for (const std::vector<u32>* chunks : {&product.chunks_a, &product.chunks_b})
    for (size_t i = 0; i < chunks->size(); i++) {
      if (shared_begin_read(w, in, COLLECTIVE, (*chunks)[i], 16)) continue;
      if (chunks == &product.chunks_b)
        for (u32 done : product.chunks_a) shared_end_read(w, done, 16);
      for (size_t done = 0; done < i; done++) shared_end_read(w, (*chunks)[done], 16);
      return false;
    }
  return true;
}

void mark_busy(Warp& w, const Instruction& in) {
  const Slot* pool = w.block->kernel->pool.data();
  for (u32 i = 0; i < in.v[0].count; i++) {
    const u32 slot = slot_index(pool[in.v[0].first + i]);
    w.busy[slot] |= WRITTEN;
    w.written_by[slot] = in.count;
  }
  for (u32 i = 0; i < in.v[1].count; i++)
    w.busy[slot_index(pool[in.v[1].first + i])] |= READ;
}

void begin_product(Warp& w, const Instruction& in, u32 mask) {
  if (!whole_warp(w, in, mask)) return;
  check_fence(w, in);
  Wgmma product;
  product.by = &in;
  product.group = w.product_groups;
  const u32 scale = w.predicate(in.c);
  product.accumulate = scale & 1;
  if (scale != 0 && scale != WHOLE_WARP)
    report(w, in, Kind::CONVERGENCE, "scale-d differs between the lanes");
  const Descriptor b(w.at<u64>(in.b)[0]);
  check_pattern(w, in, b, 'B');
  collect(product.chunks_b, b, in.count, in.flags & TRANSPOSE_B);
  if (in.v[1].count) read_a_registers(w, in, product.a);
  else collect_a(w, in, product.chunks_a);
  if (!begin_reads(w, in, product)) return;
  mark_busy(w, in);
  w.products.push_back(std::move(product));
}

// 16 bytes of shared memory as numbers.
u32 read_chunk(const Warp& w, const Instruction& in, u32 address, float* out, u32 step) {
  const u8* from = &w.block->shared.bytes[address];
  if (in.type == 't') {
    for (u32 i = 0; i < 4; i++) {
      u32 bits;
      memcpy(&bits, from + 4 * i, 4);
      out[i * step] = tf32_operand(bits);
    }
    return 4;
  }
  for (u32 i = 0; i < 8; i++) {
    u16 bits;
    memcpy(&bits, from + 2 * i, 2);
    out[i * step] = half_element(in, bits);
  }
  return 8;
}

void read_a_shared(const Warp& w, const Instruction& in, Wgmma& product) {
  const u32 k = depth(in), per = in.type == 't' ? 4 : 8;
  product.a.resize(16 * k);
  float* a = product.a.data();
  if (in.flags & TRANSPOSE_A) {
    for (u32 i = 0; i < 16; i++)
      for (u32 b = 0; b < 2; b++)
        read_chunk(w, in, product.chunks_a[i * 2 + b], a + b * 8 * k + i, k);
    return;
  }
  for (u32 r = 0; r < 16; r++)
    for (u32 half = 0; half < 2; half++)
      read_chunk(w, in, product.chunks_a[r * 2 + half], a + r * k + half * per, 1);
}

void read_b(const Warp& w, const Instruction& in, const Wgmma& product, std::vector<float>& b) {
  const u32 n = in.count, per = in.type == 't' ? 4 : 8;
  b.resize(depth(in) * n);
  if (in.flags & TRANSPOSE_B) {
    for (u32 k = 0; k < 16; k++)
      for (u32 c = 0; c < n / 8; c++)
        read_chunk(w, in, product.chunks_b[k * (n / 8) + c], &b[k * n + c * 8], 1);
    return;
  }
  for (u32 r = 0; r < n; r++)
    for (u32 half = 0; half < 2; half++)
      read_chunk(w, in, product.chunks_b[r * 2 + half], &b[half * per * n + r], n);
}

// Accumulator register r: row + 8 (r / 2 % 2), column 8 (r / 4) + r % 2 of the lane's pair.
u32 accumulator(u32 r, u32 lane, u32 n) {
  return (lane / 4 + r / 2 % 2 * 8) * n + r / 4 * 8 + lane % 4 * 2 + r % 2;
}

void finish_product(Warp& w, Wgmma& product) {
  static thread_local std::vector<float> b, c;
  const Instruction& in = *product.by;
  const u32 n = in.count, depth_k = depth(in);
  const Slot* pool = &w.block->kernel->pool[in.v[0].first];
  if (!in.v[1].count) read_a_shared(w, in, product);
  read_b(w, in, product, b);
  for (const std::vector<u32>* chunks : {&product.chunks_a, &product.chunks_b})
    for (u32 address : *chunks) shared_end_read(w, address, 16);
  c.assign(16 * n, 0.f);
  if (product.accumulate)
    for (u32 r = 0; r < n / 2; r++) {
      const float* p = w.at<float>(pool[r]);
      for (u32 l = 0; l < LANES; l++) c[accumulator(r, l, n)] = p[l];
    }
  const bool negative = !(in.flags & NEGATE_A) != !(in.flags & NEGATE_B);
  for (u32 i = 0; i < 16; i++)
    for (u32 k = 0; k < depth_k; k++) {
      const float a = negative ? -product.a[i * depth_k + k] : product.a[i * depth_k + k];
      const float* row = &b[k * n];
      float* out = &c[i * n];
      for (u32 j = 0; j < n; j++) out[j] += a * row[j];
    }
  for (u32 r = 0; r < n / 2; r++) {
    float* p = w.at<float>(pool[r]);
    for (u32 l = 0; l < LANES; l++) p[l] = c[accumulator(r, l, n)];
  }
}

void wait_group(Warp& w, const Instruction& in, u32 mask) {
  if (!whole_warp(w, in, mask)) return;
  size_t done = 0;
  while (done < w.products.size() &&
         s64(w.products[done].group) < s64(w.product_groups) - s64(in.count))
    finish_product(w, w.products[done++]);
  w.products.erase(w.products.begin(), w.products.begin() + s64(done));
  std::fill(w.busy.begin(), w.busy.end(), 0);
  for (const Wgmma& product : w.products) mark_busy(w, *product.by);
}

void commit_group(Warp& w, const Instruction& in, u32 mask) {
  if (whole_warp(w, in, mask)) w.product_groups++;
}

void fence(Warp& w, const Instruction& in, u32 mask) {
  if (whole_warp(w, in, mask)) w.fences++;
}

}  // namespace

// Other instructions that touch registers of a product: too early, or noted for wgmma.fence. A mov
// hands on when its source was accessed: the assembler renames registers, and Triton's code has
// copies behind its fences.
void check_products(Warp& w, const Instruction& in) {
  const Slot* pool = w.block->kernel->pool.data();
  if (in.copies_register && in.touched.count)
    w.touched[slot_index(in.d)] = w.touched[slot_index(in.a)];
  else
    for (u32 i = 0; i < in.touched.count; i++)
      w.touched[slot_index(pool[in.touched.first + i])] = w.fences + 1;
  if (w.products.empty()) return;
  for (u32 i = 0; i < in.sources.count; i++)
    if (w.busy[slot_index(pool[in.sources.first + i])] & WRITTEN) {
      report(w, in, Kind::WGMMA_EARLY, "an accumulator is read before wgmma.wait_group");
      return;
    }
  for (u32 i = 0; i < in.results.count; i++)
    if (w.busy[slot_index(pool[in.results.first + i])]) {
      report(w, in, Kind::WGMMA_EARLY, "a register of an unfinished wgmma is written");
      return;
    }
}

void decode_wgmma(Decode& x) {
  Instruction& in = x.in;
  if (!x.has("sync") || !x.has("aligned")) fail(".sync.aligned is missing");
  in.converge = Converge::WARP;
  if (x.has("fence")) {
    in.run = fence;
    return;
  }
  if (x.has("commit_group")) {
    in.run = commit_group;
    return;
  }
  if (x.has("wait_group")) {
    in.count = u32(x.number(0));
    in.run = wait_group;
    return;
  }
  if (!x.has("mma_async")) fail("the operation is not supported");
  const std::string shape = x.part_like("m%un%uk%u");
  u32 m = 0, n = 0, k = 0;
  sscanf(shape.c_str(), "m%un%uk%u", &m, &n, &k);
  const Type b = x.type(0), a = x.type(1), d = x.type(2);
  if (a.kind != b.kind || a.packed || !d.is('f', 4)) fail("the types are not supported");
  in.type = u32(a.kind);
  if ((a.kind != 'g' && a.kind != 'h' && a.kind != 't') || m != 64 || k != depth(in) || n % 8)
    fail("the shape is not supported");
  in.count = n;
  in.collective_matrix = true;
  const Type b32{'b', 4, false}, b64{'b', 8, false}, predicate{'p', 0, false};
  in.v[0] = x.results(0, b32);
  if (in.v[0].count != n / 2) fail("the number of accumulators is not that of the shape");
  const bool registers = x.operand(1).kind == Operand::VECTOR;
  if (registers) {
    in.v[1] = x.sources(1, b32);
    if (in.v[1].count != 4) fail("A takes four registers");
  } else {
    in.a = x.source(1, b64);
  }
  in.b = x.source(2, b64);
  in.c = x.operand(3).kind == Operand::NUMBER ? x.constant(u64(x.number(3)), 0)
                                              : x.source(3, predicate);
  if (x.number(4) < 0) in.flags |= NEGATE_A;
  if (x.number(5) < 0) in.flags |= NEGATE_B;
  if (a.kind != 't') {
    if (!registers && x.number(6)) in.flags |= TRANSPOSE_A;
    if (x.number(registers ? 6 : 7)) in.flags |= TRANSPOSE_B;
  }
  in.run = begin_product;
}

}  // namespace ptx
