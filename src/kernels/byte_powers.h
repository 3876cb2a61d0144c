// Powers of two as bytes, in 16 bits: the numbers that powers_row of every level (simd-inl.h)
// shares, and what it computes with them. Constants only, as it is included by the
// per-instruction-set files.
//
// Of an integer y in [-2^15, -1], which stands for the exponent (y + 1) / 4096:
//
//     n = y >> 12,  f = (y & 4095) << 3,  m(a, b) = (a b + 2^14) >> 15
//     t = c0 + m(f, c1 + m(f, c2 + m(f, c3)))        = 127 * 2^7 * 2^(f / 2^15), nearly
//     m(t, 2^(8 + n))                                 = 127 * 2^((y + 1) / 4096), rounded
//
// off by 0.012 before rounding, and by as much again for y having been rounded. Because y is never
// 0, 2^(8 + n) fits eight bits.
#pragma once

#include <cstdint>

namespace cqkv::kernels {

inline constexpr int kPowerBits = 12;  // of the fraction of exponents
inline constexpr float kPowerUnit = 4096.0F;
inline constexpr float kLowestPower = -32768.0F;

/// c0 to c3, searched for over all f with the roundings; t stays below 2^15. Not inline, so that
/// no level's copy stands for another's.
constexpr std::int16_t kPowerTerms[4] = {16259, 11308, 3681, 1267};

}  // namespace cqkv::kernels
