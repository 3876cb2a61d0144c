// Exact rows: what a cell's codes lose, beside its codes. The row is decoded codes
// plus an 8-bit residual with one scale for 32 channels: half the memory of 16-bit
// rows and practically exact (docs/design/exact_window.md has the figures), and small
// enough to travel in a saved row beside the codes. Which cells have one is in
// exact_window.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/code_blocks.h"

namespace cqkv {

/// One exact row: n_scales() f32, then n_channels signed bytes, padded to 4 bytes.
///
///     row[i] = decoded[i] + scale[i / 32] * residual[i]
struct ExactRowLayout {
  static constexpr int kScaleChannels = 32;
  /// Larger than what a 16-bit row could hold is not stored, and not accepted from outside:
  /// scores of cells that a query does not see must be finite too.
  static constexpr float kLargestScale = 65504.0F / 127.0F;

  int n_channels = 0;

  std::size_t n_scales() const {
    return (static_cast<std::size_t>(n_channels) + kScaleChannels - 1) / kScaleChannels;
  }

  std::size_t residual_offset() const { return n_scales() * sizeof(float); }

  std::size_t row_bytes() const {
    return residual_offset() + (static_cast<std::size_t>(n_channels) + 3) / 4 * 4;
  }
};

/// Memory of one coded cache tensor: codes, then from a multiple of 64 on the pool of exact
/// rows; a tensor with a pool takes a multiple of 64 bytes.
struct CodedTensorSize {
  std::size_t code_bytes = 0;
  std::size_t pool_bytes = 0;

  static CodedTensorSize of(const CodeLayout& layout, std::size_t n_cells, std::size_t n_rows) {
    const ExactRowLayout exact{layout.n_channels()};
    return {layout.tensor_bytes(n_cells), n_rows * exact.row_bytes()};
  }

  std::size_t pool_offset() const { return aligned(code_bytes); }

  /// Not 0, even without any codes: the host's tensors are told apart by their addresses.
  std::size_t total() const {
    const std::size_t codes = code_bytes == 0 ? aligned(1) : code_bytes;
    return pool_bytes == 0 ? codes : pool_offset() + aligned(pool_bytes);
  }

 private:
  static std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }
};

/// Writes the exact row of `row` given its decoded codes, both [n_channels]:
/// scale = max |row - decoded| / 127, residual rounded to nearest, so each channel is off
/// by at most scale / 2. 32 channels of which one is not finite, or off by more than the
/// largest 16-bit number, keep their codes alone.
void write_exact_row(ExactRowLayout layout, const float* row, const float* decoded,
                     std::uint8_t* out);

/// row[i] += scale * residual of channels [first, first + n), as attention does.
void add_exact_row(ExactRowLayout layout, const std::uint8_t* exact, int first, int n, float* row);

}  // namespace cqkv
