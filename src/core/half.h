// Conversion between 16-bit (IEEE binary16) and 32-bit floats, portable and
// exact: round to nearest, ties to even, infinities and NaN kept. Hot loops that
// convert whole masks use the kernel table instead.
#pragma once

#include <bit>
#include <cstdint>

namespace cqkv {

inline constexpr std::uint16_t kHalfInfinity = 0x7C00;

/// -infinity: what a mask has where a cell is hidden.
inline constexpr std::uint16_t kHalfMinusInfinity = 0xFC00;

inline float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16U;
  const std::uint32_t exponent = (half >> 10U) & 0x1FU;
  const std::uint32_t mantissa = half & 0x3FFU;
  if (exponent == 0x1FU) {
    return std::bit_cast<float>(sign | 0x7F800000U | (mantissa << 13U));
  }
  if (exponent != 0) {
    return std::bit_cast<float>(sign | ((exponent + 112U) << 23U) | (mantissa << 13U));
  }
  // Zero or subnormal: mantissa * 2^-24, exact in f32.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
}

inline std::uint16_t float_to_half(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16U) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) {
    return static_cast<std::uint16_t>(sign | 0x7E00U);  // NaN
  }
  if (magnitude >= 0x477FF000U) {
    return static_cast<std::uint16_t>(sign | 0x7C00U);  // rounds to infinity
  }
  if (magnitude < 0x38800000U) {
    // Subnormal result: adding 0.5 aligns the mantissa so that the FPU rounds it.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3F000000U));
  }
  const std::uint32_t odd = (magnitude >> 13U) & 1U;
  const std::uint32_t rounded = magnitude + 0xFFFU + odd - 0x38000000U;
  return static_cast<std::uint16_t>(sign | (rounded >> 13U));
}

}  // namespace cqkv
