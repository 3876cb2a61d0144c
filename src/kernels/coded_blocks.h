// The operands of the integer kernels: blocks of codes of one KV head, their centroids as
// 8-bit numbers, and what is multiplied with them. Plain data, included by kernel_table.h;
// what the numbers mean and why nothing overflows is in docs/kernels.md.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cqkv::kernels {

/// Cells of one block; every tile below has this many tokens.
inline constexpr int kBlockCells = 64;

/// Blocks that one call takes at most.
inline constexpr int kMaxChunk = 8;

/// Rows of queries are padded to a multiple of this many pairs of channels.
inline constexpr int kQueryLanes = 16;

/// Entries of a table that is looked up by a byte.
inline constexpr int kByteTableEntries = 256;

/// Centroids of a group's table: padded to kByteTableEntries for codes of up to 8 bits.
inline constexpr std::size_t table_entries(int code_bits) {
  return code_bits <= 8 ? std::size_t{kByteTableEntries} : std::size_t{1} << code_bits;
}

/// How the 8-bit centroids of a KV head lie in memory.
enum class TableOrder {
  /// [group, code, group_dim], 2^code_bits codes or kByteTableEntries, whichever is more: one
  /// load gives a group of one token.
  kByCode,
  kByChannel,  ///< [channel, kByteTableEntries]: one channel's table fills registers; code_bits
               ///< <= 8.
};

/// Bytes that may be read after the centroids of the last KV head.
inline constexpr int kTablePadding = 64;

/// What the largest probability of a step of softmax_bytes is as a byte: two products with 8-bit
/// values fit 16 bits.
inline constexpr int kLargestProbability = 127;

/// What the cosines and sines of a block's angles are multiplied by: 12 fraction bits.
inline constexpr float kAngleUnit = 4096.0F;

/// Two channels of a head that are rotated together, or that only stand side by side.
struct ChannelPair {
  std::uint16_t x = 0;
  std::uint16_t y = 0;
};

/// Some blocks of codes of one KV head.
struct CodedBlocks {
  const std::int8_t* table = nullptr;  ///< In the order of the level's table_order.
  int group_dim = 0;
  int code_bits = 0;
  int n_channels = 0;
  int n_blocks = 0;
  /// Of each block [group, 64]: one byte a code, or 16 bits if code_bits > 8.
  const std::uint8_t* codes[kMaxChunk] = {};
};

/// Cells whose codes are moved together.
inline constexpr int kPieceCells = 16;

/// What CodePieces::order holds where a code is not of that piece.
inline constexpr std::uint8_t kNoCell = 128;

/// Some of sixteen codes of a block, from two pieces of the cache: code to + i is that of cell
/// cells[p] + order[p][i], where order[p][i] is not kNoCell.
struct CodePieces {
  std::int32_t cells[2] = {};  ///< Multiples of kPieceCells.
  std::uint8_t to = 0;         ///< A multiple of kPieceCells.
  std::uint8_t order[2][kPieceCells] = {};
};

/// Codes of 8 bits of a block whose cells are anywhere: out[g][i] is the code of group g of the
/// cell that `pieces` have for place i, 0 where they have none. That of cell c is at
///
///     codes[c / 64 * block_bytes + g * group_bytes + c % 64]
struct GatherCodes {
  const std::uint8_t* codes = nullptr;
  std::size_t block_bytes = 0;
  std::size_t group_bytes = 0;
  int n_groups = 0;
  const CodePieces* pieces = nullptr;  ///< Ascending by `to`; none is empty.
  int n_pieces = 0;
  std::uint8_t* out = nullptr;  ///< [n_groups, 64]
};

/// scores[b][r][t] = factors[r] * sum over pairs i of (qx x' + qy y'), exact in 32 bits, where
/// (x, y) are the 8-bit channels pairs[i] of token t, and for i < n_rotated
///
///     x' = m(256 x, c) - m(256 y, s),  y' = m(256 x, s) + m(256 y, c)
///     m(a, b) = (a b + 2^14) >> 15
///
/// with (c, s) from `rotation`, else x' = 32 x, y' = 32 y.
struct ScoreCodes {
  CodedBlocks blocks;
  const ChannelPair* pairs = nullptr;
  int n_pairs = 0;
  int n_rotated = 0;
  /// Of every block, as KernelTable::pack_angles leaves it.
  const std::int16_t* rotation = nullptr;
  /// Of each block [row, query_stride]: qx in the lower half, qy in the upper.
  const std::uint32_t* queries[kMaxChunk] = {};
  std::size_t query_stride = 0;
  int n_rows = 0;
  const float* factors = nullptr;   ///< [n_rows]
  std::uint8_t* scratch = nullptr;  ///< score_scratch_bytes, aligned to 64
  float* scores = nullptr;          ///< [n_blocks, n_rows, 64], aligned to 64
};

/// Words of the packed angles of a block. (Some levels want them in two orders.)
inline constexpr std::size_t packed_angle_words(int n_pairs) {
  return static_cast<std::size_t>(kBlockCells) * 4 * static_cast<std::size_t>(n_pairs);
}

/// Scratch of score_codes.
inline constexpr std::size_t score_scratch_bytes(int n_channels, int n_pairs) {
  return static_cast<std::size_t>(kBlockCells) *
         (static_cast<std::size_t>(n_channels) + 8 * static_cast<std::size_t>(n_pairs) + 64);
}

/// One step of the online softmax as in softmax_rows of kernel_table.h, with probabilities in 7
/// bits relative to the largest of the step, n = kLargestProbability:
///
///     s = scores[r][t] * scale + mask[r][t];  top = max_t s;  m' = max(m, top)
///     p[r][t] = round(n exp(s - top)), off by 0.03 before rounding
///     weights[r] = exp(top - m') / n;  rescale[r] = exp(m - m')
///     l <- l * rescale + weights[r] * sum_t p[r][t]
///
/// A row that sees nothing gets p = 0, weight 0 and rescale 1. Row r of `mask` is at
/// (r / rows_per_mask) * 64.
struct SoftmaxBytes {
  const float* scores = nullptr;  ///< [n_rows, 64]
  int n_rows = 0;
  float scale = 1.0F;
  const float* mask = nullptr;
  int rows_per_mask = 1;
  float* maxima = nullptr;    ///< m, [n_rows]
  float* sums = nullptr;      ///< l, [n_rows]
  float* rescale = nullptr;   ///< [n_rows]
  float* weights = nullptr;   ///< [n_rows]
  std::uint8_t* p = nullptr;  ///< [n_rows, 64]
};

/// For every block b in order, every row r and every channel d:
///
///     out[r][d] = out[r][d] * rescale[b][r]
///                 + (weights[b][r] * scales[d]) * sum_t p[b][r][t] * v[d][t]
///
/// where v are the 8-bit channels; the sum is exact in 32 bits. `out` has n_channels rounded up
/// to kChannelLanes channels, and so has `scales`, zero from n_channels on.
struct AccumulateCodes {
  CodedBlocks blocks;
  const std::uint8_t* p = nullptr;  ///< [n_blocks, n_rows, 64], aligned to 64
  const float* weights = nullptr;   ///< [n_blocks, n_rows]
  const float* rescale = nullptr;   ///< [n_blocks, n_rows]
  const float* scales = nullptr;    ///< [n_channels]
  int n_rows = 0;
  float* out = nullptr;  ///< [n_rows, out_stride]
  std::size_t out_stride = 0;
};

}  // namespace cqkv::kernels
