// NEON: scores. Pairs are taken in chunks of 32, whose tables, angles and rotated keys fit the
// first-level cache together: the keys of a block are rotated into a tile, then multiplied four
// rows and four tokens at a time. Rotating and multiplying apart costs one store and one load of
// the keys, and needs no kernel of its own for each number of rows. Part of integer_neon-inl.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <arm_neon.h>

#include "kernels/coded_blocks.h"
#include "kernels/neon_keys-inl.h"

namespace cqkv::kernels {
namespace {

constexpr int kChunkSlices = 4;
constexpr int kChunkPairs = kChunkSlices * kSlicePairs;

// Rows and tokens whose sums are in registers together.
constexpr int kScoreRows = 4;
constexpr int kScoreTokens = 4;

// Some slices of all pairs.
struct PairChunk {
  int n_slices = 0;
  bool first = false;
  bool last = false;
  PairSlice slices[kChunkSlices];
};

inline PairChunk find_chunk(const ScoreCodes& call, int first) {
  PairChunk chunk;
  chunk.first = first == 0;
  chunk.last = first + kChunkPairs >= call.n_pairs;
  for (int i = 0; i < kChunkSlices && first < call.n_pairs; i++, first += kSlicePairs) {
    chunk.slices[i] = find_slice(call, first);
    chunk.n_slices++;
  }
  return chunk;
}

// Queries of a chunk to [slice, row, kSliceWords]. (Rows are padded to whole slices.)
template <int kRows>
inline void split_queries(const ScoreCodes& call, const PairChunk& chunk, int block, int first_row,
                          std::int16_t* out) {
  const std::uint32_t* queries = call.queries[block] + first_row * call.query_stride;
  for (int i = 0; i < chunk.n_slices; i++) {
    const std::uint32_t* at = queries + chunk.slices[i].first;
    for (int r = 0; r < kRows; r++, at += call.query_stride, out += kSliceWords) {
      const uint16x8_t low = vreinterpretq_u16_u32(vld1q_u32(at));
      const uint16x8_t high = vreinterpretq_u16_u32(vld1q_u32(at + 4));
      vst1q_s16(out, vreinterpretq_s16_u16(vuzp1q_u16(low, high)));
      vst1q_s16(out + kSlicePairs, vreinterpretq_s16_u16(vuzp2q_u16(low, high)));
    }
  }
}

[[gnu::always_inline]] inline int32x4_t add_products(int32x4_t sum, int16x8_t keys,
                                                     int16x8_t query) {
  return vmlal_high_s16(vmlal_s16(sum, vget_low_s16(keys), vget_low_s16(query)), keys, query);
}

// Adds what four tokens got from a chunk to their scores, which until the last chunk stand there
// as integers.
[[gnu::always_inline]] inline void add_to_scores(const int32x4_t (&sums)[kScoreTokens], bool first,
                                                 bool last, float factor, float* scores) {
  int32x4_t sum = vpaddq_s32(vpaddq_s32(sums[0], sums[1]), vpaddq_s32(sums[2], sums[3]));
  if (!first) {
    sum = vaddq_s32(sum, vreinterpretq_s32_f32(vld1q_f32(scores)));
  }
  vst1q_f32(scores, last ? vmulq_n_f32(vcvtq_f32_s32(sum), factor) : vreinterpretq_f32_s32(sum));
}

// Rows [first_row, first_row + kRows) of one block against the keys of a chunk, [slice,
// kTileWords].
template <int kRows>
void score_tile(const ScoreCodes& call, const PairChunk& chunk, int block, int first_row,
                const std::int16_t* tile) {
  std::int16_t queries[kChunkSlices * kRows * kSliceWords];
  split_queries<kRows>(call, chunk, block, first_row, queries);
  float* scores =
      call.scores + (static_cast<std::size_t>(block) * call.n_rows + first_row) * kBlockCells;
  float factors[kRows];
  std::memcpy(factors, call.factors + first_row, sizeof(factors));
  const int n_slices = chunk.n_slices;
  const bool first = chunk.first;
  const bool last = chunk.last;
  for (int t = 0; t < kBlockCells; t += kScoreTokens, tile += kScoreTokens * kSliceWords) {
    int32x4_t sums[kRows][kScoreTokens] = {};
    for (int slice = 0; slice < n_slices; slice++) {
      const std::int16_t* keys = tile + slice * kTileWords;
      const std::int16_t* query = queries + slice * kRows * kSliceWords;
      int16x8_t x[kScoreTokens];
      int16x8_t y[kScoreTokens];
      for (int i = 0; i < kScoreTokens; i++) {
        x[i] = vld1q_s16(keys + i * kSliceWords);
        y[i] = vld1q_s16(keys + i * kSliceWords + kSlicePairs);
      }
      for (int r = 0; r < kRows; r++, query += kSliceWords) {
        const int16x8_t query_x = vld1q_s16(query);
        const int16x8_t query_y = vld1q_s16(query + kSlicePairs);
        for (int i = 0; i < kScoreTokens; i++) {
          sums[r][i] = add_products(add_products(sums[r][i], x[i], query_x), y[i], query_y);
        }
      }
    }
    for (int r = 0; r < kRows; r++) {
      add_to_scores(sums[r], first, last, factors[r], scores + r * kBlockCells + t);
    }
  }
}

// The keys of a chunk in one block against all rows.
inline void score_chunk(const ScoreCodes& call, const PairChunk& chunk, int block) {
  alignas(64) std::int16_t tile[kChunkSlices * kTileWords];
  for (int i = 0; i < chunk.n_slices; i++) {
    const PairSlice& slice = chunk.slices[i];
    slice_rotator(call, slice)(call, slice, block, tile + i * kTileWords);
  }
  using ScoreRows = void (*)(const ScoreCodes&, const PairChunk&, int, int, const std::int16_t*);
  constexpr ScoreRows kByRows[kScoreRows] = {score_tile<1>, score_tile<2>, score_tile<3>,
                                             score_tile<4>};
  for (int row = 0; row < call.n_rows; row += kScoreRows) {
    const int left = call.n_rows - row;
    kByRows[(left < kScoreRows ? left : kScoreRows) - 1](call, chunk, block, row, tile);
  }
}

void score_codes(const ScoreCodes& call) noexcept {
  for (int first = 0; first < call.n_pairs; first += kChunkPairs) {
    const PairChunk chunk = find_chunk(call, first);
    for (int block = 0; block < call.blocks.n_blocks; block++) {
      score_chunk(call, chunk, block);
    }
  }
}

}  // namespace
}  // namespace cqkv::kernels
