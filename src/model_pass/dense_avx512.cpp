// dense.h for AVX-512: vectors of 16 floats, tiles of 12 x 32.
#define CQKV_SIMD "kernels/simd_avx512-inl.h"

#include "model_pass/dense-inl.h"

namespace cqkv::dense {

extern const Table kAvx512Table;
const Table kAvx512Table = make_table(isa::Level::kAvx512);

}  // namespace cqkv::dense
