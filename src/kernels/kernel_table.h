// The table of compute kernels, one per instruction set (docs/architecture.md,
// "Dispatch"). Included by the per-instruction-set files, so plain data and raw
// pointers only: no containers, no inline functions, no vector types.
//
// Every level computes the same sums in the same order; levels differ only in
// whether a multiply and an add round once or twice. No result of a row or token
// depends on which other rows or tokens are in the call.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa/level.h"
#include "kernels/coded_blocks.h"

namespace cqkv::kernels {

/// Centroids are padded to a multiple of this in the transposed table of `encode_group`.
inline constexpr int kEncodeLanes = 16;

/// Channels of values and outputs are padded to a multiple of this.
inline constexpr int kChannelLanes = 16;

/// Pairs of channels in the rows of `combine_angles` are padded to a multiple of this.
inline constexpr int kPairLanes = 8;

struct KernelTable {
  isa::Level level;

  /// codes[r * code_stride] = lowest i minimising sum_j (rows[r][j] - table[j][i])^2.
  /// `table` is [group_dim, n_padded] f16; padding holds +inf.
  void (*encode_group)(const std::uint16_t* table, int group_dim, int n_padded, const float* rows,
                       std::size_t row_stride, std::size_t n_rows, std::uint16_t* codes,
                       std::size_t code_stride) noexcept;

  /// Decodes one group of a block, channel by channel: tile[j * 64 + t] = centroids[codes[t]][j]
  /// for t < 64 and j < group_dim. Centroids are f16.
  void (*decode_channels)(const std::uint16_t* centroids, int group_dim, const std::uint16_t* codes,
                          float* tile) noexcept;

  /// Decodes one group of a block, token by token: tile[t * stride + j] = centroids[codes[t]][j].
  void (*decode_tokens)(const std::uint16_t* centroids, int group_dim, const std::uint16_t* codes,
                        float* tile, std::size_t stride) noexcept;

  /// Turns 64 rows into channels: tile[j * 64 + t] = rows[t * stride + j] for j < n_channels.
  void (*transpose_rows)(const float* rows, std::size_t stride, int n_channels,
                         float* tile) noexcept;

  /// Cosines and sines of sums of two angles for 64 tokens, channel by channel:
  /// cosines[i * 64 + t] = cos(low_t + high_t), i < n_pairs. low[t] and high[t] point at
  /// rows of n_padded cosines, then n_padded sines; n_padded is n_pairs rounded up to kPairLanes.
  void (*combine_angles)(const float* const* low, const float* const* high, int n_pairs,
                         float* cosines, float* sines) noexcept;

  /// The same, to the bit, where low_t is row t of one table and high_t the same for all:
  /// `low` is [2 (cosines, sines), n_pairs, 64], `high` one row.
  void (*combine_run)(const float* low, const float* high, int n_pairs, float* cosines,
                      float* sines) noexcept;

  /// Rotates pairs of channels of 64 tokens: (x, y) <- (x c - y s, x s + y c) for i < n_pairs,
  /// where x is channel i * pair_step of `tile`, y the one `partner` channels on, and c and s
  /// are row i of `cosines` and `sines`.
  void (*rotate_pairs)(float* tile, int n_pairs, int pair_step, int partner, const float* cosines,
                       const float* sines) noexcept;

  /// scores[r * 64 + t] = sum over d, ascending, of queries[r * query_stride + d] * keys[d * 64 +
  /// t].
  void (*score_rows)(const float* queries, std::size_t query_stride, int n_rows, int head_dim,
                     const float* keys, float* scores) noexcept;

  /// scores[i] <- cap tanh(scores[i] * scale) for i < n, a multiple of 64, off by 3e-7 cap at
  /// most; a score that is NaN stays so.
  void (*cap_scores)(float* scores, std::size_t n, float scale, float cap) noexcept;

  /// One step of the online softmax of n_rows rows over 64 scores.
  ///
  ///     s = scores[r][t] * scale + mask[r][t];   m' = max(m, max_t s)
  ///     scores[r][t] <- exp(s - m');  rescale[r] = exp(m - m');  l <- l * rescale + sum_t p
  ///
  /// `mask` rows may be shared: row r uses mask + (r / rows_per_mask) * 64. A masked
  /// token has -inf. A row whose m' is -inf gets p = 0 and rescale = 1. exp(0) is
  /// exactly 1, so that a step in which a row sees nothing changes nothing. A row whose first
  /// score is NaN gets a sum that is NaN.
  void (*softmax_rows)(float* scores, int n_rows, float scale, const float* mask, int rows_per_mask,
                       float* maxima, float* sums, float* rescale) noexcept;

  /// out[r][d] = out[r][d] * rescale[r] + sum over t, ascending, of p[r * 64 + t] * values[t][d],
  /// d < n_channels, a multiple of kChannelLanes; values[t] is at values + t * value_stride.
  void (*accumulate_rows)(const float* p, int n_rows, const float* values, std::size_t value_stride,
                          int n_channels, const float* rescale, float* out,
                          std::size_t out_stride) noexcept;

  /// Adds partial softmax states of n_rows rows, each (maxima, sums, out [n_channels]), to
  /// others; n_channels is a multiple of kChannelLanes and the stride of both outs. A part
  /// whose maximum is -inf changes nothing.
  void (*merge_rows)(const float* part_maxima, const float* part_sums, const float* part_out,
                     int n_rows, int n_channels, float* maxima, float* sums, float* out) noexcept;

  /// row[i] += scales[(first + i) / 32] * residuals[first + i] for i < n, rounded twice;
  /// `scales` are f32 at any address.
  void (*add_residual)(const std::uint8_t* scales, const std::int8_t* residuals, int first, int n,
                       float* row) noexcept;

  /// Widens n half floats.
  void (*half_to_float_n)(const std::uint16_t* in, std::size_t n, float* out) noexcept;

  // Integer kernels (coded_blocks.h). Sums are exact, so all levels agree to the bit.

  /// The order in which score_codes and accumulate_codes expect 8-bit centroids.
  TableOrder table_order;

  /// Codes of more bits are not for score_codes and accumulate_codes.
  int max_code_bits;

  /// The level whose table_order, pack_angles, score_codes and accumulate_codes serve codes of
  /// more bits, or null; integer_kernels in dispatch.h chooses.
  const KernelTable* wide_codes;

  /// Rounds the angles of a block to 16 bits, as score_codes reads them: round(cosines[i][t] *
  /// factor) and as many sines for i < n_pairs and 64 tokens, to packed_angle_words(n_pairs) words
  /// in the level's own order. |cosine * factor| < 2^15.
  void (*pack_angles)(const float* cosines, const float* sines, int n_pairs, float factor,
                      std::int16_t* packed) noexcept;

  /// Rotates rows of pairs back by an angle and rounds them to 16 bits:
  ///
  ///     packed[r][i] = round(x c_i + y s_i) & 0xFFFF | round(y c_i - x s_i) << 16
  ///
  /// x = pairs[r][i], y = pairs[r][n_padded + i], i < n_padded, a multiple of kQueryLanes; ties
  /// to even. No result may leave 16 bits.
  void (*rotate_queries)(const float* pairs, int n_rows, int n_padded, const float* cosines,
                         const float* sines, std::uint32_t* packed) noexcept;

  /// See GatherCodes.
  void (*gather_codes)(const GatherCodes& call) noexcept;

  /// See ScoreCodes.
  void (*score_codes)(const ScoreCodes& call) noexcept;

  /// See SoftmaxBytes.
  void (*softmax_bytes)(const SoftmaxBytes& call) noexcept;

  /// See AccumulateCodes.
  void (*accumulate_codes)(const AccumulateCodes& call) noexcept;
};

/// Baseline of the platform; always compiled, the specification in code.
extern const KernelTable kScalarTable;
/// AVX2, FMA and F16C.
extern const KernelTable kAvx2Table;
/// AVX-512 F, BW, DQ and VL, with F16C.
extern const KernelTable kAvx512Table;
/// The same with VBMI and VNNI.
extern const KernelTable kAvx512VbmiTable;
/// What every 64-bit Arm processor has.
extern const KernelTable kNeonTable;
/// Armv8.2 with dot products of bytes (FEAT_DotProd).
extern const KernelTable kNeonDotprodTable;

}  // namespace cqkv::kernels
