// Rows of tokens to channels of tokens: corners of four channels by four or eight tokens, and whole
// blocks.
#pragma once

#include <cstddef>

#include "kernels/coded_blocks.h"
#include "kernels/simd-inl.h"
#include "kernels/vec-inl.h"

namespace cqkv::kernels {
namespace {

// Stores four channels of four tokens, given as rows of four channels.
inline void transpose4(Vec4 a, Vec4 b, Vec4 c, Vec4 d, float* tile, std::size_t n_channels) {
  const Vec4 ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Vec4 ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Vec4 cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Vec4 cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Vec4 out[4] = {__builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5),
                       __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
                       __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5),
                       __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
  for (std::size_t j = 0; j < n_channels; j++) {
    store4(tile + j * kBlockCells, out[j]);
  }
}

// Tokens that are transposed together. (A Vec8 must not be passed by value: the
// baseline has no registers for it.)
constexpr int kCornerTokens = kLanes >= 8 ? 8 : 4;

// Stores channels j to j + 3 of kTokens tokens, given where their rows begin.
template <int kTokens>
inline void store_corner(const float* const* rows, int j, float* tile) {
  if constexpr (kTokens == 4) {
    transpose4(load4(rows[0] + j), load4(rows[1] + j), load4(rows[2] + j), load4(rows[3] + j), tile,
               4);
  } else {
    // Token t in the lower half, token t + 4 in the upper: both halves go the same way.
    Vec8 both[4];
    for (int t = 0; t < 4; t++) {
      both[t] = __builtin_shufflevector(load4(rows[t] + j), load4(rows[t + 4] + j), 0, 1, 2, 3, 4,
                                        5, 6, 7);
    }
    const Vec8 ab_low = __builtin_shufflevector(both[0], both[1], 0, 8, 1, 9, 4, 12, 5, 13);
    const Vec8 ab_high = __builtin_shufflevector(both[0], both[1], 2, 10, 3, 11, 6, 14, 7, 15);
    const Vec8 cd_low = __builtin_shufflevector(both[2], both[3], 0, 8, 1, 9, 4, 12, 5, 13);
    const Vec8 cd_high = __builtin_shufflevector(both[2], both[3], 2, 10, 3, 11, 6, 14, 7, 15);
    // Four statements: as an array and a loop, gcc 12 sends the rows through the stack.
    Vec8At* rows_out = reinterpret_cast<Vec8At*>(tile);
    constexpr int kRowVecs = kBlockCells / 8;
    rows_out[0] = __builtin_shufflevector(ab_low, cd_low, 0, 1, 8, 9, 4, 5, 12, 13);
    rows_out[kRowVecs] = __builtin_shufflevector(ab_low, cd_low, 2, 3, 10, 11, 6, 7, 14, 15);
    rows_out[2 * kRowVecs] = __builtin_shufflevector(ab_high, cd_high, 0, 1, 8, 9, 4, 5, 12, 13);
    rows_out[3 * kRowVecs] = __builtin_shufflevector(ab_high, cd_high, 2, 3, 10, 11, 6, 7, 14, 15);
  }
}

void transpose_rows(const float* rows, std::size_t stride, int n_channels, float* tile) noexcept {
  const int n_corners = n_channels / 4;
  for (int t = 0; t < kBlockCells; t += kCornerTokens) {
    const float* corner[kCornerTokens];
    for (int i = 0; i < kCornerTokens; i++) {
      corner[i] = rows + (t + i) * stride;
    }
    for (int j = 0; j < n_corners * 4; j += 4) {
      store_corner<kCornerTokens>(corner, j, tile + static_cast<std::size_t>(j) * kBlockCells + t);
    }
  }
  for (int j = n_corners * 4; j < n_channels; j++) {
    for (int t = 0; t < kBlockCells; t++) {
      tile[static_cast<std::size_t>(j) * kBlockCells + t] = rows[t * stride + j];
    }
  }
}

}  // namespace
}  // namespace cqkv::kernels
