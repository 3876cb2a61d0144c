// The levels of instructions that tables of kernels are written for. Included by the files
// compiled for one level, so names only: what a level needs, which stands below which and
// how a table is chosen is in select.h.
#pragma once

namespace cqkv::isa {

enum class Level {
  kScalar,       ///< The platform's baseline.
  kNeon,         ///< What every 64-bit Arm processor has.
  kNeonDotprod,  ///< Armv8.2 with dot products of bytes (FEAT_DotProd).
  kAvx2,         ///< AVX2, FMA and F16C.
  kAvx512,       ///< AVX-512 F, BW, DQ and VL, and kAvx2.
  kAvx512Vbmi,   ///< VBMI and VNNI, and kAvx512.
};

}  // namespace cqkv::isa
