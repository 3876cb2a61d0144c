// The AVX-512 level with VBMI and VNNI: as AVX-512, with integer kernels of its own.
#include <cstddef>
#include <cstdint>

#include <immintrin.h>

#include "kernels/avx512_lanes.inc"
#include "kernels/integer_vbmi.inc"
#include "kernels/make_table.inc"

namespace cqkv::kernels {

const KernelTable kAvx512VbmiTable = make_table("avx512_vbmi");

}  // namespace cqkv::kernels
