// The NEON level: what every 64-bit Arm processor has. 4 lanes, fused multiply-add, half floats
// in hardware.
#define CQKV_SIMD "kernels/simd_neon-inl.h"

#include <cstddef>
#include <cstdint>

#include <arm_neon.h>

namespace cqkv::kernels {
namespace {

// Eight channels of four tokens t, as pairs: (t, t + 1) of each channel in the first register,
// (t + 2, t + 3) in the second.
struct TokenQuad {
  int8x16_t first;
  int8x16_t second;
};

// The tokens come in the lower halves.
inline TokenQuad make_quad(const int8x16_t (&tokens)[4]) {
  return {vzip1q_s8(tokens[0], tokens[1]), vzip1q_s8(tokens[2], tokens[3])};
}

// Adds four products a channel to sums[2]; p are the probabilities of sixteen tokens, of which
// these are quad number kQuad. Two products fit 16 bits, since probabilities have seven; tokens
// in pairs let one instruction add two such sums and widen the result.
template <int kQuad>
[[gnu::always_inline]] inline void add_quad(const TokenQuad& values, int8x16_t p, int32x4_t* sums) {
  const int16x8_t pairs = vreinterpretq_s16_s8(p);
  const int8x16_t first = vreinterpretq_s8_s16(vdupq_laneq_s16(pairs, 2 * kQuad));
  const int8x16_t second = vreinterpretq_s8_s16(vdupq_laneq_s16(pairs, 2 * kQuad + 1));
  const int16x8_t low = vmlal_s8(vmull_s8(vget_low_s8(values.first), vget_low_s8(first)),
                                 vget_low_s8(values.second), vget_low_s8(second));
  const int16x8_t high = vmlal_high_s8(vmull_high_s8(values.first, first), values.second, second);
  sums[0] = vpadalq_s16(sums[0], low);
  sums[1] = vpadalq_s16(sums[1], high);
}

}  // namespace
}  // namespace cqkv::kernels

#include "kernels/integer_neon.inc"
#include "kernels/make_table.inc"

namespace cqkv::kernels {

const KernelTable kNeonTable = make_table(isa::Level::kNeon);

}  // namespace cqkv::kernels
