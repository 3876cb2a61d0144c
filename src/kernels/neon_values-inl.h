// NEON: weighted sums of values, sixteen channels of a block at a time: decoded to quads of
// tokens, then multiplied four rows at a time. Part of integer_neon-inl.h.
//
// How a quad is multiplied is not here: the two levels differ in it. Each gives a type TokenQuad,
// which is eight channels of four tokens and has
//
//     static TokenQuad of(const int8x16_t (&tokens)[4])                     from lower halves
//     template <int kQuad> void add_to(int8x16_t p, int32x4_t* sums) const
//
// The latter adds four products a channel to sums[2]; p are the probabilities of sixteen tokens, of
// which these are quad number kQuad.
#pragma once

#include <cstddef>
#include <cstdint>

#include <arm_neon.h>

#include "kernels/coded_blocks.h"
#include "kernels/neon_rows-inl.h"

namespace cqkv::kernels {
namespace {

constexpr int kQuadTokens = 4;
constexpr int kQuads = kBlockCells / kQuadTokens;
// Channels of one pass, two slices, and rows whose sums are in registers together.
constexpr int kPassChannels = 2 * kSlice;
constexpr int kPassVecs = kPassChannels / 4;
constexpr int kValueRows = 4;

// Sixteen channels of a block.
template <typename TokenQuad>
struct ValueTile {
  TokenQuad quads[kQuads][2];
};

template <typename TokenQuad, int kDim, typename Code>
[[gnu::always_inline]] inline TokenQuad load_quad(const SliceSource<kDim, Code>& source, int t) {
  const int8x16_t tokens[kQuadTokens] = {source.row(t), source.row(t + 1), source.row(t + 2),
                                         source.row(t + 3)};
  return TokenQuad::of(tokens);
}

template <typename TokenQuad, int kDim, typename Code>
void decode_values(const CodedBlocks& blocks, int block, int channel, ValueTile<TokenQuad>* tile) {
  const SliceSource<kDim, Code> low(blocks, block, channel);
  const SliceSource<kDim, Code> high(blocks, block, channel + kSlice);
  for (int i = 0; i < kQuads; i++) {
    tile->quads[i][0] = load_quad<TokenQuad>(low, i * kQuadTokens);
    tile->quads[i][1] = load_quad<TokenQuad>(high, i * kQuadTokens);
  }
}

template <typename TokenQuad>
using DecodeValues = void (*)(const CodedBlocks&, int, int, ValueTile<TokenQuad>*);

template <typename TokenQuad, typename Code>
inline DecodeValues<TokenQuad> value_decoder(int group_dim) {
  switch (group_dim) {
    case 1:
      return decode_values<TokenQuad, 1, Code>;
    case 2:
      return decode_values<TokenQuad, 2, Code>;
    case 4:
      return decode_values<TokenQuad, 4, Code>;
    case 8:
      return decode_values<TokenQuad, 8, Code>;
    default:
      return decode_values<TokenQuad, 16, Code>;
  }
}

// Sums over one block to the outputs of one row.
[[gnu::always_inline]] inline void add_to_out(const AccumulateCodes& call,
                                              const int32x4_t (&sums)[kPassVecs], int block,
                                              int row, int channel) {
  const std::size_t at = static_cast<std::size_t>(block) * call.n_rows + row;
  const float weight = call.weights[at];
  const float rescale = call.rescale[at];
  const float* scales = call.scales + channel;
  float* out = call.out + row * call.out_stride + channel;
  for (int v = 0; v < kPassVecs; v++) {
    const float32x4_t factor = vmulq_n_f32(vld1q_f32(scales + 4 * v), weight);
    const float32x4_t kept = vmulq_n_f32(vld1q_f32(out + 4 * v), rescale);
    vst1q_f32(out + 4 * v, vfmaq_f32(kept, vcvtq_f32_s32(sums[v]), factor));
  }
}

// Adds quad number kQuad of sixteen tokens to the sums of kRows rows; p[row] are the
// probabilities of the sixteen.
template <int kQuad, typename TokenQuad, int kRows>
[[gnu::always_inline]] inline void add_to_rows(const TokenQuad (&values)[2],
                                               const int8x16_t (&p)[kRows],
                                               int32x4_t (&sums)[kRows][kPassVecs]) {
  for (int r = 0; r < kRows; r++) {
    values[0].template add_to<kQuad>(p[r], sums[r]);
    values[1].template add_to<kQuad>(p[r], sums[r] + 2);
  }
}

template <typename TokenQuad, int kRows>
void accumulate_tile(const AccumulateCodes& call, const ValueTile<TokenQuad>& tile, int block,
                     int first_row, int channel) {
  const std::uint8_t* p =
      call.p + (static_cast<std::size_t>(block) * call.n_rows + first_row) * kBlockCells;
  int32x4_t sums[kRows][kPassVecs] = {};
  for (int i = 0; i < kQuads; i += 4, p += 4 * kQuadTokens) {
    int8x16_t sixteen[kRows];
    for (int r = 0; r < kRows; r++) {
      sixteen[r] = vreinterpretq_s8_u8(vld1q_u8(p + r * kBlockCells));
      // Not to be loaded again number by number, as gcc 12 would.
      asm("" : "+w"(sixteen[r]));
    }
    add_to_rows<0>(tile.quads[i], sixteen, sums);
    add_to_rows<1>(tile.quads[i + 1], sixteen, sums);
    add_to_rows<2>(tile.quads[i + 2], sixteen, sums);
    add_to_rows<3>(tile.quads[i + 3], sixteen, sums);
  }
  for (int r = 0; r < kRows; r++) {
    add_to_out(call, sums[r], block, first_row + r, channel);
  }
}

template <typename TokenQuad>
void accumulate_codes(const AccumulateCodes& call) noexcept {
  const CodedBlocks& blocks = call.blocks;
  const DecodeValues<TokenQuad> decode =
      blocks.code_bits <= 8 ? value_decoder<TokenQuad, std::uint8_t>(blocks.group_dim)
                            : value_decoder<TokenQuad, std::uint16_t>(blocks.group_dim);
  using AccumulateRows =
      void (*)(const AccumulateCodes&, const ValueTile<TokenQuad>&, int, int, int);
  constexpr AccumulateRows kByRows[kValueRows] = {
      accumulate_tile<TokenQuad, 1>, accumulate_tile<TokenQuad, 2>, accumulate_tile<TokenQuad, 3>,
      accumulate_tile<TokenQuad, 4>};
  ValueTile<TokenQuad> tile;
  // The tables of a pass stay in the cache over the blocks.
  for (int channel = 0; channel < blocks.n_channels; channel += kPassChannels) {
    for (int block = 0; block < blocks.n_blocks; block++) {
      decode(blocks, block, channel, &tile);
      for (int row = 0; row < call.n_rows; row += kValueRows) {
        const int left = call.n_rows - row;
        kByRows[(left < kValueRows ? left : kValueRows) - 1](call, tile, block, row, channel);
      }
    }
  }
}

}  // namespace
}  // namespace cqkv::kernels
