// The vectors of AVX2 (their names: simd-inl.h): 8 lanes, fused multiply-add, half floats in
// hardware.
#pragma once

#include <cstdint>

#include <immintrin.h>

#include "kernels/byte_powers.h"

namespace cqkv::kernels {
namespace {

constexpr int kLanes = 8;
using Vec = float __attribute__((vector_size(32)));
using IntVec = std::int32_t __attribute__((vector_size(32)));

inline Vec multiply_add(Vec a, Vec b, Vec c) {
  return _mm256_fmadd_ps(a, b, c);
}

inline Vec widen(const std::uint16_t* in) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in)));
}

using Bytes = std::uint8_t __attribute__((vector_size(16)));

inline Bytes pick_bytes(Bytes from, Bytes order) {
  return __builtin_bit_cast(Bytes, _mm_shuffle_epi8(__builtin_bit_cast(__m128i, from),
                                                    __builtin_bit_cast(__m128i, order)));
}

// Sixteen of them, as words.
inline __m256i powers(__m256i y) {
  const __m256i shifts = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, -128,  //
                                          0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, -128);
  const __m256i fraction = _mm256_and_si256(_mm256_slli_epi16(y, 3), _mm256_set1_epi16(0x7FFF));
  __m256i t = _mm256_set1_epi16(kPowerTerms[3]);
  for (int k = 2; k >= 0; k--) {
    t = _mm256_add_epi16(_mm256_mulhrs_epi16(t, fraction), _mm256_set1_epi16(kPowerTerms[k]));
  }
  // 16 + n, whose upper byte is 0, finds 2^(8 + n).
  return _mm256_mulhrs_epi16(t, _mm256_shuffle_epi8(shifts, _mm256_srli_epi16(y, kPowerBits)));
}

inline std::int32_t powers_row(const Vec* y, std::uint8_t* out) {
  // Packing goes lane by lane: dwords of four tokens come out as 0 2 4 6 1 3 5 7.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  __m256i sums = _mm256_setzero_si256();
  for (int v = 0; v < 8; v += 4) {
    const __m256i low = _mm256_packs_epi32(_mm256_cvtps_epi32(y[v]), _mm256_cvtps_epi32(y[v + 1]));
    const __m256i high =
        _mm256_packs_epi32(_mm256_cvtps_epi32(y[v + 2]), _mm256_cvtps_epi32(y[v + 3]));
    const __m256i bytes =
        _mm256_permutevar8x32_epi32(_mm256_packus_epi16(powers(low), powers(high)), order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + v * kLanes), bytes);
    sums = _mm256_add_epi64(sums, _mm256_sad_epu8(bytes, _mm256_setzero_si256()));
  }
  const __m128i two =
      _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  return _mm_cvtsi128_si32(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two)));
}

}  // namespace
}  // namespace cqkv::kernels
