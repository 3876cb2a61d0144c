// Decoding of one group of a block to floats, token by token or channel by channel. Centroids as
// bytes are the integer kernels' (integer_*-inl.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/coded_blocks.h"
#include "kernels/simd-inl.h"
#include "kernels/transpose-inl.h"
#include "kernels/vec-inl.h"

namespace cqkv::kernels {
namespace {

constexpr int kMaxGroupDim = 64;  // of CodecSpec

// rows[t * stride + j] = centroids[codes[t]][j]
template <int kDim>
inline void decode_rows(const std::uint16_t* centroids, const std::uint16_t* codes, float* rows,
                        std::size_t stride) {
  if constexpr (kDim % kLanes == 0) {
    for (int t = 0; t < kBlockCells; t++) {
      for (int j = 0; j < kDim; j += kLanes) {
        store(rows + t * stride + j,
              widen(centroids + static_cast<std::size_t>(codes[t]) * kDim + j));
      }
    }
  } else {
    std::uint16_t halves[kBlockCells * kDim];
    float floats[kBlockCells * kDim];
    for (int t = 0; t < kBlockCells; t++) {
      std::memcpy(halves + t * kDim, centroids + static_cast<std::size_t>(codes[t]) * kDim,
                  kDim * sizeof(*halves));
    }
    for (int i = 0; i < kBlockCells * kDim; i += kLanes) {
      store(floats + i, widen(halves + i));
    }
    for (int t = 0; t < kBlockCells; t++) {
      std::memcpy(rows + t * stride, floats + t * kDim, kDim * sizeof(*floats));
    }
  }
}

void decode_tokens(const std::uint16_t* centroids, int group_dim, const std::uint16_t* codes,
                   float* tile, std::size_t stride) noexcept {
  switch (group_dim) {
    case 1:
      return decode_rows<1>(centroids, codes, tile, stride);
    case 2:
      return decode_rows<2>(centroids, codes, tile, stride);
    case 4:
      return decode_rows<4>(centroids, codes, tile, stride);
    case 8:
      return decode_rows<8>(centroids, codes, tile, stride);
    case 16:
      return decode_rows<16>(centroids, codes, tile, stride);
    case 32:
      return decode_rows<32>(centroids, codes, tile, stride);
    default:
      return decode_rows<64>(centroids, codes, tile, stride);
  }
}

void decode_channels(const std::uint16_t* centroids, int group_dim, const std::uint16_t* codes,
                     float* tile) noexcept {
  float rows[kBlockCells * kMaxGroupDim];
  decode_tokens(centroids, group_dim, codes, rows, static_cast<std::size_t>(group_dim));
  transpose_rows(rows, static_cast<std::size_t>(group_dim), group_dim, tile);
}

}  // namespace
}  // namespace cqkv::kernels
