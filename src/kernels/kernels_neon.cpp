// The NEON level: what every 64-bit Arm processor has. 4 lanes, fused multiply-add, half floats
// in hardware.
#define CQKV_SIMD "kernels/simd_neon-inl.h"

#include <arm_neon.h>

#include "kernels/integer_neon-inl.h"
#include "kernels/make_table-inl.h"

namespace cqkv::kernels {
namespace {

// Eight channels of four tokens t, as pairs: (t, t + 1) of each channel in the first register,
// (t + 2, t + 3) in the second.
struct PairedQuad {
  int8x16_t first;
  int8x16_t second;

  static PairedQuad of(const int8x16_t (&tokens)[4]) {
    return {vzip1q_s8(tokens[0], tokens[1]), vzip1q_s8(tokens[2], tokens[3])};
  }

  // Two products fit 16 bits, since probabilities have seven; tokens in pairs let one instruction
  // add two such sums and widen the result.
  template <int kQuad>
  [[gnu::always_inline]] void add_to(int8x16_t p, int32x4_t* sums) const {
    const int16x8_t pairs = vreinterpretq_s16_s8(p);
    const int8x16_t p_first = vreinterpretq_s8_s16(vdupq_laneq_s16(pairs, 2 * kQuad));
    const int8x16_t p_second = vreinterpretq_s8_s16(vdupq_laneq_s16(pairs, 2 * kQuad + 1));
    const int16x8_t low = vmlal_s8(vmull_s8(vget_low_s8(first), vget_low_s8(p_first)),
                                   vget_low_s8(second), vget_low_s8(p_second));
    const int16x8_t high = vmlal_high_s8(vmull_high_s8(first, p_first), second, p_second);
    sums[0] = vpadalq_s16(sums[0], low);
    sums[1] = vpadalq_s16(sums[1], high);
  }
};

}  // namespace

const KernelTable kNeonTable = make_table(isa::Level::kNeon, kNeonIntegerKernels<PairedQuad>);

}  // namespace cqkv::kernels
