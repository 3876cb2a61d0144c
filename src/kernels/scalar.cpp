// The scalar level: compiled for the platform's baseline, always present. On x86
// that means four lanes and separate multiplication and addition.
#define CQKV_SIMD "kernels/simd_scalar-inl.h"

#include "kernels/integer_scalar.inc"
#include "kernels/make_table.inc"

namespace cqkv::kernels {

const KernelTable kScalarTable = make_table(isa::Level::kScalar);

}  // namespace cqkv::kernels
