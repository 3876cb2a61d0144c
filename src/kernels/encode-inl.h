// Encoding: the nearest centroid of groups of channels. The rows come from elsewhere, and where
// codes go is the caller's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/float_constants.h"
#include "kernels/simd-inl.h"
#include "kernels/vec-inl.h"

namespace cqkv::kernels {
namespace {

// The lowest index of the smallest distance; lane i of `index` ascends with the scan.
inline int best_lane(Vec distance, IntVec index) {
  float best = distance[0];
  int best_index = index[0];
  for (int lane = 1; lane < kLanes; lane++) {
    if (distance[lane] < best || (distance[lane] == best && index[lane] < best_index)) {
      best = distance[lane];
      best_index = index[lane];
    }
  }
  return best_index;
}

template <int kRows>
inline void encode_rows(const std::uint16_t* table, int group_dim, int n_padded, const float* rows,
                        std::size_t row_stride, std::uint16_t* codes, std::size_t code_stride) {
  IntVec index = {};
  for (int lane = 0; lane < kLanes; lane++) {
    index[lane] = lane;
  }
  Vec best[kRows];
  IntVec best_index[kRows];
  for (int r = 0; r < kRows; r++) {
    best[r] = splat(kInfinity);
    best_index[r] = index;
  }
  for (int i = 0; i < n_padded; i += kLanes, index += kLanes) {
    Vec distance[kRows] = {};
    for (int j = 0; j < group_dim; j++) {
      const Vec centroids = widen(table + static_cast<std::size_t>(j) * n_padded + i);
      for (int r = 0; r < kRows; r++) {
        const Vec difference = rows[r * row_stride + j] - centroids;
        distance[r] = multiply_add(difference, difference, distance[r]);
      }
    }
    for (int r = 0; r < kRows; r++) {
      const IntVec closer = distance[r] < best[r];
      best[r] = closer ? distance[r] : best[r];
      best_index[r] = closer ? index : best_index[r];
    }
  }
  for (int r = 0; r < kRows; r++) {
    codes[r * code_stride] = static_cast<std::uint16_t>(best_lane(best[r], best_index[r]));
  }
}

void encode_group(const std::uint16_t* table, int group_dim, int n_padded, const float* rows,
                  std::size_t row_stride, std::size_t n_rows, std::uint16_t* codes,
                  std::size_t code_stride) noexcept {
  constexpr int kRows = 4;
  std::size_t r = 0;
  for (; r + kRows <= n_rows; r += kRows) {
    encode_rows<kRows>(table, group_dim, n_padded, rows + r * row_stride, row_stride,
                       codes + r * code_stride, code_stride);
  }
  for (; r < n_rows; r++) {
    encode_rows<1>(table, group_dim, n_padded, rows + r * row_stride, row_stride,
                   codes + r * code_stride, code_stride);
  }
}

}  // namespace
}  // namespace cqkv::kernels
