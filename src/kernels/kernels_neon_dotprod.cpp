// The NEON level with dot products of bytes (FEAT_DotProd), which serve the values: keys and
// queries have 16 bits.
#define CQKV_SIMD "kernels/simd_neon-inl.h"

#include <arm_neon.h>

#include "kernels/integer_neon-inl.h"
#include "kernels/make_table-inl.h"

namespace cqkv::kernels {
namespace {

// Eight channels of four tokens, channel by channel: four channels a register.
struct DotQuad {
  int8x16_t first;
  int8x16_t second;

  static DotQuad of(const int8x16_t (&tokens)[4]) {
    const int16x8_t two = vreinterpretq_s16_s8(vzip1q_s8(tokens[0], tokens[1]));
    const int16x8_t next = vreinterpretq_s16_s8(vzip1q_s8(tokens[2], tokens[3]));
    return {vreinterpretq_s8_s16(vzip1q_s16(two, next)),
            vreinterpretq_s8_s16(vzip2q_s16(two, next))};
  }

  template <int kQuad>
  [[gnu::always_inline]] void add_to(int8x16_t p, int32x4_t* sums) const {
    sums[0] = vdotq_laneq_s32(sums[0], first, p, kQuad);
    sums[1] = vdotq_laneq_s32(sums[1], second, p, kQuad);
  }
};

}  // namespace

const KernelTable kNeonDotprodTable =
    make_table(isa::Level::kNeonDotprod, kNeonIntegerKernels<DotQuad>);

}  // namespace cqkv::kernels
