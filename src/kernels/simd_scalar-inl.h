// The vectors of the scalar level (their names: simd-inl.h): four lanes, and what the compiler
// makes of them for the platform's baseline. On x86 that means separate multiplication and
// addition.
#pragma once

#include <cstdint>

#include "kernels/byte_powers.h"
#include "kernels/coded_blocks.h"
#include "kernels/float_constants.h"

namespace cqkv::kernels {
namespace {

constexpr int kLanes = 4;
using Vec = float __attribute__((vector_size(16)));
using IntVec = std::int32_t __attribute__((vector_size(16)));

inline Vec multiply_add(Vec a, Vec b, Vec c) {
  return a * b + c;
}

// Exponent and mantissa moved into place are the value times 2^-112, subnormals
// included; infinities and NaN need the exponent filled up.
inline Vec widen(const std::uint16_t* in) {
  const IntVec halves = {in[0], in[1], in[2], in[3]};
  const IntVec magnitude = (halves & 0x7FFF) << 13;
  const Vec value = __builtin_bit_cast(Vec, magnitude) * 0x1p112F;
  const IntVec special = (magnitude >= 0x0F800000) & 0x7F800000;
  const IntVec sign = (halves & 0x8000) << 16;
  return __builtin_bit_cast(Vec, __builtin_bit_cast(IntVec, value) | special | sign);
}

using Bytes = std::uint8_t __attribute__((vector_size(16)));

inline Bytes pick_bytes(Bytes from, Bytes order) {
  Bytes bytes = {};
  for (int i = 0; i < 16; i++) {
    bytes[i] = order[i] < 16 ? from[order[i]] : 0;
  }
  return bytes;
}

// m(a, b) of byte_powers.h and coded_blocks.h.
inline int multiply_high(int a, int b) {
  return (a * b + (1 << 14)) >> 15;
}

// The specification of byte_powers.h.
inline std::int32_t powers_row(const Vec* y, std::uint8_t* out) {
  std::int32_t sum = 0;
  for (int i = 0; i < kBlockCells; i++) {
    const float exponent = y[i / kLanes][i % kLanes];
    const float clamped = exponent > kLowestPower ? exponent : kLowestPower;  // also of NaN
    const int units = static_cast<int>(clamped + kRound - kRound);
    const int fraction = (units & ((1 << kPowerBits) - 1)) << 3;
    int t = kPowerTerms[3];
    for (int k = 2; k >= 0; k--) {
      t = kPowerTerms[k] + multiply_high(t, fraction);
    }
    const int byte = multiply_high(t, 1 << (8 + (units >> kPowerBits)));
    out[i] = static_cast<std::uint8_t>(byte);
    sum += byte;
  }
  return sum;
}

}  // namespace
}  // namespace cqkv::kernels
