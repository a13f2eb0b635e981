// The core op in fp32 or fp64.
#include "bank_slice.h"
#include "pack.h"

namespace sede {
namespace SEDE_ISA {
namespace {

template <class T>
void pack(const Matrix& m, index_t begin, index_t count, void* out) {
  pack_queries<T>(m, begin, count, (T*)out);
}

}  // namespace

const BankOps<float> bank_f32 = {kPanel<float>, Simd<float>::width, 1, 4, kFew<float>, pack<float>,
                                 scratch_bytes<float>, slice<float>};
const BankOps<double> bank_f64 = {kPanel<double>, Simd<double>::width, 1, 8, kFew<double>, pack<double>,
                                  scratch_bytes<double>, slice<double>};

}  // namespace SEDE_ISA
}  // namespace sede
