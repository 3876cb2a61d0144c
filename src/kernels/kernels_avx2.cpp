// The AVX2 level: 8 lanes, fused multiply-add, half floats in hardware.
#define CQKV_SIMD "kernels/simd_avx2-inl.h"

#include "kernels/integer_avx2-inl.h"
#include "kernels/make_table-inl.h"

namespace cqkv::kernels {

const KernelTable kAvx2Table = make_table(isa::Level::kAvx2, kAvx2IntegerKernels);

}  // namespace cqkv::kernels
