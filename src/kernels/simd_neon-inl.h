// The vectors of the two NEON levels (their names: simd-inl.h): 4 lanes, fused multiply-add, half
// floats in hardware. All of it is in every 64-bit Arm processor.
#pragma once

#include <cstdint>

#include <arm_neon.h>

#include "kernels/byte_powers.h"

namespace cqkv::kernels {
namespace {

constexpr int kLanes = 4;
using Vec = float __attribute__((vector_size(16)));
using IntVec = std::int32_t __attribute__((vector_size(16)));

inline Vec multiply_add(Vec a, Vec b, Vec c) {
  return vfmaq_f32(c, a, b);
}

inline Vec widen(const std::uint16_t* in) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(in)));
}

using Bytes = uint8x16_t;

inline Bytes pick_bytes(Bytes from, Bytes order) {
  return vqtbl1q_u8(from, order);
}

// Eight of them, as words.
inline int16x8_t powers(int16x8_t y) {
  const int16x8_t fraction = vandq_s16(vshlq_n_s16(y, 3), vdupq_n_s16(0x7FFF));
  int16x8_t t = vdupq_n_s16(kPowerTerms[3]);
  for (int k = 2; k >= 0; k--) {
    t = vaddq_s16(vqrdmulhq_s16(t, fraction), vdupq_n_s16(kPowerTerms[k]));
  }
  // Shifted right by 7 - n, rounded.
  return vrshlq_s16(t, vsubq_s16(vshrq_n_s16(y, kPowerBits), vdupq_n_s16(7)));
}

inline std::int32_t powers_row(const Vec* y, std::uint8_t* out) {
  // The maximum of a number and NaN is the number.
  const auto units = [](float32x4_t exponents) {
    return vqmovn_s32(vcvtnq_s32_f32(vmaxnmq_f32(exponents, vdupq_n_f32(kLowestPower))));
  };
  uint32_t sum = 0;
  for (int v = 0; v < 16; v += 4, out += 16) {
    const int16x8_t low = powers(vcombine_s16(units(y[v]), units(y[v + 1])));
    const int16x8_t high = powers(vcombine_s16(units(y[v + 2]), units(y[v + 3])));
    const uint8x16_t bytes = vcombine_u8(vqmovun_s16(low), vqmovun_s16(high));
    vst1q_u8(out, bytes);
    sum += vaddlvq_u8(bytes);
  }
  return static_cast<std::int32_t>(sum);
}

}  // namespace
}  // namespace cqkv::kernels
