// The scalar level: compiled for the platform's baseline, always present. On x86
// that means four lanes and separate multiplication and addition.
#define CQKV_SIMD "kernels/simd_scalar-inl.h"

#include "kernels/integer_scalar-inl.h"
#include "kernels/make_table-inl.h"

namespace cqkv::kernels {

const KernelTable kScalarTable = make_table(isa::Level::kScalar, kScalarIntegerKernels);

}  // namespace cqkv::kernels
