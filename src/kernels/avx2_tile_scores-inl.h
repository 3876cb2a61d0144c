// AVX2: scores with tokens in the lanes, for many rows and for pairs in any order: a block is
// decoded to bytes by channels, and rotated into a tile where rows are many. Part of
// integer_avx2-inl.h.
//
// Order of tokens: a channel of a block is 64 bytes in order; unpacking to 16 bits takes the lower
// or the upper eight bytes of both lanes of 32 bytes, and packed angles are in that order. Scores
// are put in order when they are stored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

#include "kernels/avx2_rows-inl.h"
#include "kernels/coded_blocks.h"
#include "kernels/unroll.h"

namespace cqkv::kernels {
namespace {

// Rows of one pass while keys are rotated, and from a tile of rotated keys.
constexpr int kFusedRows = 4;
constexpr int kTileRows = 6;

// out[j * 64 + t] of eight channels.
template <int kDim, typename Code>
inline void decode_slice(const CodedBlocks& blocks, int block, int channel, std::int8_t* out) {
  const SliceSource<kDim, Code> source(blocks, block, channel);
  for (int t = 0; t < kBlockCells; t += 16) {
    __m256i
        two[4];  // channel by channel, tokens t + 2 i and the next; eight more in the upper lane
    for (int i = 0; i < 4; i++) {
      const __m256i even = join(source.row(t + 2 * i), source.row(t + 8 + 2 * i));
      const __m256i odd = join(source.row(t + 2 * i + 1), source.row(t + 9 + 2 * i));
      two[i] = _mm256_unpacklo_epi8(even, odd);
    }
    const __m256i low[2] = {_mm256_unpacklo_epi16(two[0], two[1]),
                            _mm256_unpackhi_epi16(two[0], two[1])};
    const __m256i high[2] = {_mm256_unpacklo_epi16(two[2], two[3]),
                             _mm256_unpackhi_epi16(two[2], two[3])};
    for (int i = 0; i < 2; i++) {
      const __m256i eight[2] = {_mm256_unpacklo_epi32(low[i], high[i]),
                                _mm256_unpackhi_epi32(low[i], high[i])};
      for (int j = 0; j < 2; j++) {
        const __m256i channels = _mm256_permute4x64_epi64(eight[j], 0xD8);
        std::int8_t* at = out + (4 * i + 2 * j) * kBlockCells + t;
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm256_castsi256_si128(channels));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at + kBlockCells),
                         _mm256_extracti128_si256(channels, 1));
      }
    }
  }
}

using DecodeSlice = void (*)(const CodedBlocks&, int, int, std::int8_t*);

template <typename Code>
inline DecodeSlice slice_decoder(int group_dim) {
  switch (group_dim) {
    case 1:
      return decode_slice<1, Code>;
    case 2:
      return decode_slice<2, Code>;
    case 4:
      return decode_slice<4, Code>;
    case 8:
      return decode_slice<8, Code>;
    default:
      return decode_slice<16, Code>;
  }
}

// A quarter of a block of one pair: registers of (x', y'), tokens 0-3 16-19 and 4-7 20-23 of
// 32, or 8 more.
struct PairQuarter {
  __m256i low;
  __m256i high;
};

// 256 times the bytes of a quarter.
inline __m256i widen_bytes(const std::int8_t* bytes, int quarter) {
  const __m256i all = load_bytes(bytes + quarter / 2 * 32);
  const __m256i zero = _mm256_setzero_si256();
  return quarter % 2 == 0 ? _mm256_unpacklo_epi8(zero, all) : _mm256_unpackhi_epi8(zero, all);
}

inline PairQuarter interleave(__m256i x, __m256i y) {
  return {_mm256_unpacklo_epi16(x, y), _mm256_unpackhi_epi16(x, y)};
}

[[gnu::always_inline]] inline PairQuarter rotated_quarter(const std::int8_t* x_bytes,
                                                          const std::int8_t* y_bytes,
                                                          const std::int16_t* angles, int quarter) {
  const __m256i x = widen_bytes(x_bytes, quarter);
  const __m256i y = widen_bytes(y_bytes, quarter);
  const __m256i cosine = load_bytes(angles + quarter * 16);
  const __m256i sine = load_bytes(angles + kBlockCells + quarter * 16);
  return interleave(_mm256_sub_epi16(_mm256_mulhrs_epi16(x, cosine), _mm256_mulhrs_epi16(y, sine)),
                    _mm256_add_epi16(_mm256_mulhrs_epi16(x, sine), _mm256_mulhrs_epi16(y, cosine)));
}

inline PairQuarter plain_quarter(const std::int8_t* x_bytes, const std::int8_t* y_bytes,
                                 int quarter) {
  return interleave(_mm256_srai_epi16(widen_bytes(x_bytes, quarter), 3),
                    _mm256_srai_epi16(widen_bytes(y_bytes, quarter), 3));
}

// Two registers of sums of one row, of 16 tokens as in PairQuarter, to scores of 32 tokens.
inline void store_scores(__m256i low, __m256i high, float factor, int quarter, float* scores) {
  const __m256 scale = _mm256_set1_ps(factor);
  const __m256 a = _mm256_mul_ps(_mm256_cvtepi32_ps(low), scale);
  const __m256 b = _mm256_mul_ps(_mm256_cvtepi32_ps(high), scale);
  float* at = scores + quarter / 2 * 32 + quarter % 2 * 8;
  _mm256_storeu_ps(at, _mm256_permute2f128_ps(a, b, 0x20));
  _mm256_storeu_ps(at + 16, _mm256_permute2f128_ps(a, b, 0x31));
}

template <int kRows>
[[gnu::always_inline]] inline void add_products(__m256i (&sums)[kRows][2], __m256i low,
                                                __m256i high, const std::uint32_t* queries,
                                                std::size_t stride) {
  CQKV_UNROLLED
  for (int r = 0; r < kRows; r++) {
    const __m256i query = _mm256_set1_epi32(static_cast<int>(queries[r * stride]));
    __m256i first = _mm256_add_epi32(sums[r][0], _mm256_madd_epi16(low, query));
    __m256i second = _mm256_add_epi32(sums[r][1], _mm256_madd_epi16(high, query));
    // Row after row: gcc 12 would load all queries first, and have no registers left for sums.
    asm("" : "+x"(first), "+x"(second));
    sums[r][0] = first;
    sums[r][1] = second;
  }
}

// Few rows of one block, from the decoded channels [channel, 64].
template <int kRows>
inline void score_fused(const ScoreCodes& call, int block, const std::int8_t* bytes) {
  float* scores = call.scores + static_cast<std::size_t>(block) * call.n_rows * kBlockCells;
  for (int quarter = 0; quarter < 4; quarter++) {
    __m256i sums[kRows][2] = {};
    int i = 0;
    for (; i < call.n_rotated; i++) {
      const PairQuarter keys = rotated_quarter(
          bytes + call.pairs[i].x * kBlockCells, bytes + call.pairs[i].y * kBlockCells,
          call.rotation + static_cast<std::size_t>(i) * 2 * kBlockCells, quarter);
      add_products<kRows>(sums, keys.low, keys.high, call.queries[block] + i, call.query_stride);
    }
    for (; i < call.n_pairs; i++) {
      const PairQuarter keys = plain_quarter(bytes + call.pairs[i].x * kBlockCells,
                                             bytes + call.pairs[i].y * kBlockCells, quarter);
      add_products<kRows>(sums, keys.low, keys.high, call.queries[block] + i, call.query_stride);
    }
    for (int r = 0; r < kRows; r++) {
      store_scores(sums[r][0], sums[r][1], call.factors[r], quarter, scores + r * kBlockCells);
    }
  }
}

// The rotated keys of a block: tile[(quarter * n_pairs + pair) * 16 ...] of 32 bits.
inline void rotate_block(const ScoreCodes& call, const std::int8_t* bytes, std::uint32_t* tile) {
  for (int quarter = 0; quarter < 4; quarter++) {
    for (int i = 0; i < call.n_pairs; i++, tile += 16) {
      const std::int8_t* x = bytes + call.pairs[i].x * kBlockCells;
      const std::int8_t* y = bytes + call.pairs[i].y * kBlockCells;
      const PairQuarter keys =
          i < call.n_rotated
              ? rotated_quarter(x, y, call.rotation + static_cast<std::size_t>(i) * 2 * kBlockCells,
                                quarter)
              : plain_quarter(x, y, quarter);
      store_bytes(tile, keys.low);
      store_bytes(tile + 8, keys.high);
    }
  }
}

template <int kRows>
inline void score_tile_rows(const ScoreCodes& call, int block, int first,
                            const std::uint32_t* tile) {
  float* scores =
      call.scores + (static_cast<std::size_t>(block) * call.n_rows + first) * kBlockCells;
  const std::uint32_t* queries = call.queries[block] + first * call.query_stride;
  for (int quarter = 0; quarter < 4; quarter++) {
    __m256i sums[kRows][2] = {};
    for (int i = 0; i < call.n_pairs; i++, tile += 16) {
      add_products<kRows>(sums, load_bytes(tile), load_bytes(tile + 8), queries + i,
                          call.query_stride);
    }
    CQKV_UNROLLED
    for (int r = 0; r < kRows; r++) {
      store_scores(sums[r][0], sums[r][1], call.factors[first + r], quarter,
                   scores + r * kBlockCells);
    }
  }
}

inline void score_block(const ScoreCodes& call, int block, const std::int8_t* bytes,
                        std::uint32_t* tile) {
  switch (call.n_rows) {
    case 1:
      return score_fused<1>(call, block, bytes);
    case 2:
      return score_fused<2>(call, block, bytes);
    case 3:
      return score_fused<3>(call, block, bytes);
    case kFusedRows:
      return score_fused<kFusedRows>(call, block, bytes);
    default:
      break;
  }
  rotate_block(call, bytes, tile);
  using ScoreRows = void (*)(const ScoreCodes&, int, int, const std::uint32_t*);
  constexpr ScoreRows kByRows[kTileRows] = {score_tile_rows<1>, score_tile_rows<2>,
                                            score_tile_rows<3>, score_tile_rows<4>,
                                            score_tile_rows<5>, score_tile_rows<6>};
  for (int row = 0; row < call.n_rows; row += kTileRows) {
    const int left = call.n_rows - row;
    kByRows[(left < kTileRows ? left : kTileRows) - 1](call, block, row, tile);
  }
}

}  // namespace
}  // namespace cqkv::kernels
