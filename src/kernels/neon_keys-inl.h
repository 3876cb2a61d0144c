// NEON: rotated keys, eight pairs at a time with channels in the lanes, as the groups come from
// memory; and the angles that rotate them, which stand in the same order. Part of
// integer_neon-inl.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include <arm_neon.h>

#include "kernels/coded_blocks.h"
#include "kernels/neon_rows-inl.h"

namespace cqkv::kernels {
namespace {

constexpr int kSlicePairs = 8;

// Words of a slice of one token, or of a query: eight x, eight y.
constexpr int kSliceWords = 2 * kSlicePairs;
// Words of the rotated keys of a slice: [token, x or y, 8].
constexpr int kTileWords = kBlockCells * kSliceWords;

// Eight pairs, or the fewer that are left.
struct PairSlice {
  int first = 0;
  int n = 0;
  bool side_by_side = false;  // their channels, so that slices of channels hold them
  bool alternating = false;   // then: x and y in turn, else all x and all y
};

// Whether all pairs of a slice are rotated or none.
inline bool rotates_evenly(const ScoreCodes& call, const PairSlice& slice) {
  return slice.first >= call.n_rotated || slice.first + slice.n <= call.n_rotated;
}

inline PairSlice find_slice(const ScoreCodes& call, int first) {
  const ChannelPair* pairs = call.pairs + first;
  const int left = call.n_pairs - first;
  PairSlice slice;
  slice.first = first;
  slice.n = left < kSlicePairs ? left : kSlicePairs;
  slice.alternating = pairs[0].y == pairs[0].x + 1;
  const int step = slice.alternating ? 2 : 1;
  const int align = call.blocks.group_dim < kSlice ? call.blocks.group_dim : kSlice;
  slice.side_by_side = slice.n == kSlicePairs && rotates_evenly(call, slice) &&
                       pairs[0].x % align == 0 && (slice.alternating || pairs[0].y % align == 0);
  for (int i = 1; i < slice.n; i++) {
    slice.side_by_side = slice.side_by_side && pairs[i].x == pairs[0].x + i * step &&
                         pairs[i].y == pairs[0].y + i * step;
  }
  return slice;
}

// ---------------------------------------------------------------- angles

// Cosines and sines of the pairs of a slice for each token.
struct SliceAngles {
  const std::int16_t* cosines;
  const std::int16_t* sines;
  std::size_t stride;
};

// What leaves pairs as they are: m(256 x, 4096) = 32 x.
constexpr std::int16_t kNoCosines[kSlicePairs] = {4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096};
constexpr std::int16_t kNoSines[kSlicePairs] = {};

inline SliceAngles find_angles(const ScoreCodes& call, const PairSlice& slice) {
  const int n_rotated = call.n_rotated - slice.first;
  if (n_rotated <= 0) {
    return {kNoCosines, kNoSines, 0};
  }
  const std::int16_t* cosines = call.rotation + 2 * slice.first;
  return {cosines, cosines + (n_rotated < kSlicePairs ? n_rotated : kSlicePairs),
          static_cast<std::size_t>(2 * call.n_rotated)};
}

// Angles of one pair for all tokens, which stand `stride` words apart.
inline void pack_row(const float* values, float factor, std::int16_t* out, std::size_t stride) {
  for (int t = 0; t < kBlockCells; t += 4) {
    const int16x4_t words = vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(values + t), factor)));
    vst1_lane_s16(out, words, 0);
    vst1_lane_s16(out + stride, words, 1);
    vst1_lane_s16(out + 2 * stride, words, 2);
    vst1_lane_s16(out + 3 * stride, words, 3);
    out += 4 * stride;
  }
}

// [token, slice, cosines or sines, 8 or what is left]
void pack_angles(const float* cosines, const float* sines, int n_pairs, float factor,
                 std::int16_t* packed) noexcept {
  const auto stride = static_cast<std::size_t>(2 * n_pairs);
  for (int i = 0; i < n_pairs; i++) {
    const int left = n_pairs - i / kSlicePairs * kSlicePairs;
    std::int16_t* out = packed + i / kSlicePairs * 2 * kSlicePairs + i % kSlicePairs;
    pack_row(cosines + i * kBlockCells, factor, out, stride);
    pack_row(sines + i * kBlockCells, factor, out + (left < kSlicePairs ? left : kSlicePairs),
             stride);
  }
}

// ---------------------------------------------------------------- keys

// x' and y' of eight pairs from 256 x and 256 y: m(a, b) is one instruction.
[[gnu::always_inline]] inline void store_rotated(int16x8_t x, int16x8_t y,
                                                 const std::int16_t* cosines,
                                                 const std::int16_t* sines, std::int16_t* out) {
  const int16x8_t cosine = vld1q_s16(cosines);
  const int16x8_t sine = vld1q_s16(sines);
  vst1q_s16(out, vsubq_s16(vqrdmulhq_s16(x, cosine), vqrdmulhq_s16(y, sine)));
  vst1q_s16(out + kSlicePairs, vaddq_s16(vqrdmulhq_s16(x, sine), vqrdmulhq_s16(y, cosine)));
}

// 256 times the lower eight bytes.
inline int16x8_t widen_bytes(int8x16_t bytes) {
  return vreinterpretq_s16_s8(vzip1q_s8(vdupq_n_s8(0), bytes));
}

// A slice of pairs that stand side by side, to kTileWords.
template <int kDim, typename Code, bool kAlternating>
void rotate_slice(const ScoreCodes& call, const PairSlice& slice, int block, std::int16_t* tile) {
  const ChannelPair first = call.pairs[slice.first];
  const SliceSource<kDim, Code> low(call.blocks, block, first.x);
  const SliceSource<kDim, Code> high(call.blocks, block,
                                     kAlternating ? first.x + kSlice : int{first.y});
  SliceAngles angles = find_angles(call, slice);
#pragma GCC unroll 4
  for (int t = 0; t < kBlockCells; t++, tile += kSliceWords) {
    if constexpr (kAlternating) {
      const int16x8_t both = vreinterpretq_s16_s64(
          vzip1q_s64(vreinterpretq_s64_s8(low.row(t)), vreinterpretq_s64_s8(high.row(t))));
      store_rotated(vshlq_n_s16(both, 8), vandq_s16(both, vdupq_n_s16(-256)), angles.cosines,
                    angles.sines, tile);
    } else {
      store_rotated(widen_bytes(low.row(t)), widen_bytes(high.row(t)), angles.cosines, angles.sines,
                    tile);
    }
    angles.cosines += angles.stride;
    angles.sines += angles.stride;
  }
}

inline int channel_of(const CodedBlocks& blocks, int block, int channel, int t) {
  const int group = channel / blocks.group_dim;
  const std::size_t at = static_cast<std::size_t>(group) * kBlockCells + t;
  const std::size_t code = blocks.code_bits <= 8
                               ? blocks.codes[block][at]
                               : reinterpret_cast<const std::uint16_t*>(blocks.codes[block])[at];
  return blocks.table[(group * table_entries(blocks.code_bits) + code) * blocks.group_dim +
                      channel % blocks.group_dim];
}

// The same for pairs of any channels, one by one; what a slice lacks to eight is zero.
inline void gather_slice(const ScoreCodes& call, const PairSlice& slice, int block,
                         std::int16_t* tile) {
  const SliceAngles angles = find_angles(call, slice);
  const int n_rotated = call.n_rotated - slice.first;
  for (int t = 0; t < kBlockCells; t++, tile += kSliceWords) {
    std::int16_t x[kSlicePairs] = {};
    std::int16_t y[kSlicePairs] = {};
    std::int16_t cosines[kSlicePairs] = {};
    std::int16_t sines[kSlicePairs] = {};
    for (int i = 0; i < slice.n; i++) {
      const ChannelPair pair = call.pairs[slice.first + i];
      x[i] = static_cast<std::int16_t>(channel_of(call.blocks, block, pair.x, t) * 256);
      y[i] = static_cast<std::int16_t>(channel_of(call.blocks, block, pair.y, t) * 256);
      cosines[i] = i < n_rotated ? angles.cosines[t * angles.stride + i] : kNoCosines[i];
      sines[i] = i < n_rotated ? angles.sines[t * angles.stride + i] : kNoSines[i];
    }
    store_rotated(vld1q_s16(x), vld1q_s16(y), cosines, sines, tile);
  }
}

using RotateSlice = void (*)(const ScoreCodes&, const PairSlice&, int, std::int16_t*);

template <typename Code, bool kAlternating>
inline RotateSlice rotator_of(int group_dim) {
  switch (group_dim) {
    case 1:
      return rotate_slice<1, Code, kAlternating>;
    case 2:
      return rotate_slice<2, Code, kAlternating>;
    case 4:
      return rotate_slice<4, Code, kAlternating>;
    case 8:
      return rotate_slice<8, Code, kAlternating>;
    default:
      return rotate_slice<16, Code, kAlternating>;
  }
}

inline RotateSlice slice_rotator(const ScoreCodes& call, const PairSlice& slice) {
  const int group_dim = call.blocks.group_dim;
  if (!slice.side_by_side) {
    return gather_slice;
  }
  if (call.blocks.code_bits <= 8) {
    return slice.alternating ? rotator_of<std::uint8_t, true>(group_dim)
                             : rotator_of<std::uint8_t, false>(group_dim);
  }
  return slice.alternating ? rotator_of<std::uint16_t, true>(group_dim)
                           : rotator_of<std::uint16_t, false>(group_dim);
}

}  // namespace
}  // namespace cqkv::kernels
