// dense.h for the platform's baseline: vectors of 4 floats, tiles of 4 x 8.
#define CQKV_SIMD "kernels/simd_scalar-inl.h"

#include "model_pass/dense-inl.h"

namespace cqkv::dense {

extern const Table kPortableTable;
const Table kPortableTable = make_table(isa::Level::kScalar);

}  // namespace cqkv::dense
