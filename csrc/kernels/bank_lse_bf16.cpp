// The core op for bf16 queries on bf16 or int8 banks where the processor multiplies bf16 pairs
// (see pairs.h): both products in bf16 with fp32 sums, at twice the fp32 rate. int8 values are exact
// in bf16; their row scale stays in the columns of S and P.
#include "bank_slice.h"
#include "pack.h"
#include "pair_operands.h"

namespace sede {
namespace SEDE_ISA {

#ifdef SEDE_PAIRS

namespace {

constexpr index_t W = Simd<float>::width, P = kPanel<float>;

// Weights [count][P] in fp32 become pairs [count / 2][P] along the bank, in place.
void as_elements(float* panel, index_t count, Pair*) {
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

// Panels [panel][pair of columns][P].
void pack(const Matrix& m, index_t begin, index_t count, void* out) {
  constexpr index_t kChunk = 64, kStride = kChunk + W;
  const index_t pairs = (m.cols + 1) / 2;
  float dense[P * kStride];  // pairs of some columns as rows
  for (index_t first = 0; first < count; first += P) {
    const index_t rows = count - first < P ? count - first : P;
    float* panel = (float*)out + first * pairs;
    for (index_t p = 0; p < pairs; p += kChunk) {
      const index_t some = pairs - p < kChunk ? pairs - p : kChunk;
      for (index_t i = 0; i < rows; ++i) {
        const Bf16* row = (const Bf16*)m.data + (begin + first + i) * m.row_stride;
        for (index_t n = 0; n < some; ++n) {
          const index_t d = 2 * (p + n);
          const std::uint32_t high = d + 1 < m.cols ? row[(d + 1) * m.col_stride].bits : 0;
          dense[i * kStride + n] = from_bits(row[d * m.col_stride].bits | high << 16);
        }
      }
      pack_panel(dense, kStride, rows, some, panel + p * P);
    }
  }
}

}  // namespace

const BankOps<float> bank_bf16 = {P, W, 2, 4, kFew<Pair>, pack, scratch_bytes<Pair>, slice<Pair>};

#else

const BankOps<float> bank_bf16 = {};

#endif

}  // namespace SEDE_ISA
}  // namespace sede
