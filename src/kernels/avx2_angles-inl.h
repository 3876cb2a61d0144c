// AVX2: angles in 16 bits, in the orders of avx2_tile_scores-inl.h and avx2_token_scores-inl.h.
// Part of integer_avx2-inl.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include <immintrin.h>

#include "kernels/avx2_rows-inl.h"
#include "kernels/avx2_token_scores-inl.h"
#include "kernels/coded_blocks.h"

namespace cqkv::kernels {
namespace {

// 64 angles in the order of bytes unpacked to words: tokens 0-7 and 16-23, then 8-15 and 24-31.
inline void pack_row(const float* values, __m256 scale, std::int16_t* out) {
  for (int half = 0; half < 2; half++, values += 32, out += 32) {
    __m256i words[4];
    for (int v = 0; v < 4; v++) {
      words[v] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values + v * 8), scale));
    }
    for (int v = 0; v < 2; v++) {
      // Packing goes lane by lane.
      store_bytes(out + v * 16,
                  _mm256_packs_epi32(_mm256_permute2x128_si256(words[v], words[v + 2], 0x20),
                                     _mm256_permute2x128_si256(words[v], words[v + 2], 0x31)));
    }
  }
}

// Eight rows of eight words, transposed; columns stand two by two, `stride` words apart.
inline void transpose_words(const __m128i (&rows)[8], std::int16_t* out, std::size_t stride) {
  __m128i two[8];
  for (int i = 0; i < 4; i++) {
    two[i] = _mm_unpacklo_epi16(rows[2 * i], rows[2 * i + 1]);
    two[i + 4] = _mm_unpackhi_epi16(rows[2 * i], rows[2 * i + 1]);
  }
  for (int half = 0; half < 2; half++) {  // columns 0-3 and 4-7
    const __m128i* at = two + 4 * half;
    const __m128i low[2] = {_mm_unpacklo_epi32(at[0], at[1]), _mm_unpackhi_epi32(at[0], at[1])};
    const __m128i high[2] = {_mm_unpacklo_epi32(at[2], at[3]), _mm_unpackhi_epi32(at[2], at[3])};
    for (int i = 0; i < 2; i++) {
      std::int16_t* column = out + (2 * half + i) * stride;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(column), _mm_unpacklo_epi64(low[i], high[i]));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(column + 8), _mm_unpackhi_epi64(low[i], high[i]));
    }
  }
}

// Eight pairs of eight tokens, from pairs by tokens to tokens by pairs.
inline void pack_corner(const float* values, __m256 scale, std::int16_t* out, std::size_t stride) {
  __m128i rows[8];
  for (int i = 0; i < 8; i++) {
    const __m256i words =
        _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values + i * kBlockCells), scale));
    rows[i] = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  }
  transpose_words(rows, out, stride);
}

// [pair, cosines or sines, token], and, where pairs fall into runs, [two tokens, run, cosines or
// sines, token, 8] behind it.
void pack_angles(const float* cosines, const float* sines, int n_pairs, float factor,
                 std::int16_t* packed) noexcept {
  const __m256 scale = _mm256_set1_ps(factor);
  const std::size_t half_words = packed_angle_words(n_pairs) / 2;
  for (int i = 0; i < n_pairs; i++) {
    pack_row(cosines + i * kBlockCells, scale, packed + i * 2 * kBlockCells);
    pack_row(sines + i * kBlockCells, scale, packed + (i * 2 + 1) * kBlockCells);
  }
  if (n_pairs % kRunPairs != 0) {
    return;
  }
  const std::size_t stride = 4 * static_cast<std::size_t>(n_pairs);
  for (int t = 0; t < kBlockCells; t += 8) {
    for (int i = 0; i < n_pairs; i += kRunPairs) {
      std::int16_t* out = packed + half_words + t / 2 * stride + i * 4;
      pack_corner(cosines + i * kBlockCells + t, scale, out, stride);
      pack_corner(sines + i * kBlockCells + t, scale, out + 2 * kRunPairs, stride);
    }
  }
}

}  // namespace
}  // namespace cqkv::kernels
