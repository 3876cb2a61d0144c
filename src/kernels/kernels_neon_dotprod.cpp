// The NEON level with dot products of bytes (FEAT_DotProd), which serve the values: keys and
// queries have 16 bits.
#define CQKV_SIMD "kernels/simd_neon-inl.h"

#include <cstddef>
#include <cstdint>

#include <arm_neon.h>

namespace cqkv::kernels {
namespace {

// Eight channels of four tokens, channel by channel: four channels a register.
struct TokenQuad {
  int8x16_t first;
  int8x16_t second;
};

// The tokens come in the lower halves.
inline TokenQuad make_quad(const int8x16_t (&tokens)[4]) {
  const int16x8_t two = vreinterpretq_s16_s8(vzip1q_s8(tokens[0], tokens[1]));
  const int16x8_t next = vreinterpretq_s16_s8(vzip1q_s8(tokens[2], tokens[3]));
  return {vreinterpretq_s8_s16(vzip1q_s16(two, next)), vreinterpretq_s8_s16(vzip2q_s16(two, next))};
}

// Adds four products a channel to sums[2]; p are the probabilities of sixteen tokens, of which
// these are quad number kQuad.
template <int kQuad>
[[gnu::always_inline]] inline void add_quad(const TokenQuad& values, int8x16_t p, int32x4_t* sums) {
  sums[0] = vdotq_laneq_s32(sums[0], values.first, p, kQuad);
  sums[1] = vdotq_laneq_s32(sums[1], values.second, p, kQuad);
}

}  // namespace
}  // namespace cqkv::kernels

#include "kernels/integer_neon.inc"
#include "kernels/make_table.inc"

namespace cqkv::kernels {

const KernelTable kNeonDotprodTable = make_table(isa::Level::kNeonDotprod);

}  // namespace cqkv::kernels
