// dense.h for AVX2: vectors of 8 floats, tiles of 6 x 16.
#define CQKV_SIMD "kernels/simd_avx2-inl.h"

#include "model_pass/dense-inl.h"

namespace cqkv::dense {

extern const Table kAvx2Table;
const Table kAvx2Table = make_table(isa::Level::kAvx2);

}  // namespace cqkv::dense
