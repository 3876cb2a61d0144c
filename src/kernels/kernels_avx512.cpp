// The AVX-512 level: 16 lanes, fused multiply-add, half floats in hardware.
#define CQKV_SIMD "kernels/simd_avx512-inl.h"

#include "kernels/integer_avx2-inl.h"
#include "kernels/make_table-inl.h"

namespace cqkv::kernels {

const KernelTable kAvx512Table = make_table(isa::Level::kAvx512, kAvx2IntegerKernels);

}  // namespace cqkv::kernels
