// Rotary embedding in floats: angles of the tokens of a block, keys rotated by them, and queries
// rotated back and rounded to 16 bits. Angles in 16 bits are the integer kernels'
// (integer_*-inl.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/coded_blocks.h"
#include "kernels/float_constants.h"
#include "kernels/kernel_table.h"
#include "kernels/simd-inl.h"
#include "kernels/transpose-inl.h"
#include "kernels/vec-inl.h"

namespace cqkv::kernels {
namespace {

inline std::size_t padded_pairs(int n_pairs) {
  return (static_cast<std::size_t>(n_pairs) + kPairLanes - 1) / kPairLanes * kPairLanes;
}

// Four pairs of four tokens: one 4 x 4 corner of the two output tables.
inline void combine_corner(const float* const* low, const float* const* high, std::size_t n_padded,
                           int first, int n_pairs, float* cosines, float* sines) {
  Vec4 cosine[4];
  Vec4 sine[4];
  for (int t = 0; t < 4; t++) {
    const Vec4 low_cos = load4(low[t] + first);
    const Vec4 low_sin = load4(low[t] + n_padded + first);
    const Vec4 high_cos = load4(high[t] + first);
    const Vec4 high_sin = load4(high[t] + n_padded + first);
    cosine[t] = high_cos * low_cos - high_sin * low_sin;
    sine[t] = high_sin * low_cos + high_cos * low_sin;
  }
  const int n = n_pairs - first < 4 ? n_pairs - first : 4;
  transpose4(cosine[0], cosine[1], cosine[2], cosine[3], cosines, static_cast<std::size_t>(n));
  transpose4(sine[0], sine[1], sine[2], sine[3], sines, static_cast<std::size_t>(n));
}

void combine_angles(const float* const* low, const float* const* high, int n_pairs, float* cosines,
                    float* sines) noexcept {
  const std::size_t n_padded = padded_pairs(n_pairs);
  for (int t = 0; t < kBlockCells; t += 4) {
    for (int i = 0; i < n_pairs; i += 4) {
      const std::size_t at = static_cast<std::size_t>(i) * kBlockCells + t;
      combine_corner(low + t, high + t, n_padded, i, n_pairs, cosines + at, sines + at);
    }
  }
}

// The same sums as above, eight or sixteen tokens at a time.
void combine_run(const float* low, const float* high, int n_pairs, float* cosines,
                 float* sines) noexcept {
  const std::size_t n_padded = padded_pairs(n_pairs);
  const float* low_sines = low + static_cast<std::size_t>(n_pairs) * kBlockCells;
  for (int i = 0; i < n_pairs; i++) {
    const Vec high_cos = splat(high[i]);
    const Vec high_sin = splat(high[n_padded + i]);
    for (int t = 0; t < kBlockCells; t += kLanes) {
      const std::size_t at = static_cast<std::size_t>(i) * kBlockCells + t;
      const Vec low_cos = load(low + at);
      const Vec low_sin = load(low_sines + at);
      store(cosines + at, high_cos * low_cos - high_sin * low_sin);
      store(sines + at, high_sin * low_cos + high_cos * low_sin);
    }
  }
}

void rotate_pairs(float* tile, int n_pairs, int pair_step, int partner, const float* cosines,
                  const float* sines) noexcept {
  for (int i = 0; i < n_pairs; i++) {
    float* x = tile + static_cast<std::size_t>(i) * pair_step * kBlockCells;
    float* y = x + static_cast<std::size_t>(partner) * kBlockCells;
    const std::size_t row = static_cast<std::size_t>(i) * kBlockCells;
    for (int t = 0; t < kBlockCells; t += kLanes) {
      const Vec cosine = load(cosines + row + t);
      const Vec sine = load(sines + row + t);
      const Vec a = load(x + t);
      const Vec b = load(y + t);
      store(x + t, multiply_add(a, cosine, -(b * sine)));
      store(y + t, multiply_add(a, sine, b * cosine));
    }
  }
}

void rotate_queries(const float* pairs, int n_rows, int n_padded, const float* cosines,
                    const float* sines, std::uint32_t* packed) noexcept {
  for (int r = 0; r < n_rows; r++) {
    const float* x_row = pairs + static_cast<std::size_t>(r) * 2 * n_padded;
    const float* y_row = x_row + n_padded;
    std::uint32_t* out = packed + static_cast<std::size_t>(r) * n_padded;
    for (int i = 0; i < n_padded; i += kLanes) {
      const Vec x = load(x_row + i);
      const Vec y = load(y_row + i);
      const Vec cosine = load(cosines + i);
      const Vec sine = load(sines + i);
      const Vec rotated_x = multiply_add(x, cosine, y * sine) + kRound;
      const Vec rotated_y = multiply_add(y, cosine, -(x * sine)) + kRound;
      const IntVec both = (__builtin_bit_cast(IntVec, rotated_x) & 0xFFFF) |
                          (__builtin_bit_cast(IntVec, rotated_y) << 16);
      std::memcpy(out + i, &both, sizeof(both));
    }
  }
}

}  // namespace
}  // namespace cqkv::kernels
