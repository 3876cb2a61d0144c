// The AVX-512 level with VBMI and VNNI: as AVX-512, with integer kernels of its own for codes of
// up to 8 bits. Longer ones do not fit its look-ups in registers.
#define CQKV_SIMD "kernels/simd_avx512-inl.h"

#include "kernels/integer_vbmi-inl.h"
#include "kernels/make_table-inl.h"

namespace cqkv::kernels {

const KernelTable kAvx512VbmiTable =
    make_table(isa::Level::kAvx512Vbmi, kVbmiIntegerKernels, &kAvx512Table);

}  // namespace cqkv::kernels
