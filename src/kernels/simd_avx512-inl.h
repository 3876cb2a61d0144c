// The vectors of the two AVX-512 levels (their names: simd-inl.h): 16 lanes, fused multiply-add,
// half floats in hardware.
#pragma once

#include <cstdint>

#include <immintrin.h>

#include "kernels/byte_powers.h"

namespace cqkv::kernels {
namespace {

constexpr int kLanes = 16;
using Vec = float __attribute__((vector_size(64)));
using IntVec = std::int32_t __attribute__((vector_size(64)));

inline Vec multiply_add(Vec a, Vec b, Vec c) {
  return _mm512_fmadd_ps(a, b, c);
}

inline Vec widen(const std::uint16_t* in) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in)));
}

using Bytes = std::uint8_t __attribute__((vector_size(16)));

inline Bytes pick_bytes(Bytes from, Bytes order) {
  return __builtin_bit_cast(Bytes, _mm_shuffle_epi8(__builtin_bit_cast(__m128i, from),
                                                    __builtin_bit_cast(__m128i, order)));
}

// Thirty-two of them, as words.
inline __m512i powers(__m512i y) {
  const __m512i shifts =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, -128));
  const __m512i fraction = _mm512_and_si512(_mm512_slli_epi16(y, 3), _mm512_set1_epi16(0x7FFF));
  __m512i t = _mm512_set1_epi16(kPowerTerms[3]);
  for (int k = 2; k >= 0; k--) {
    t = _mm512_add_epi16(_mm512_mulhrs_epi16(t, fraction), _mm512_set1_epi16(kPowerTerms[k]));
  }
  // 16 + n, whose upper byte is 0, finds 2^(8 + n).
  return _mm512_mulhrs_epi16(t, _mm512_shuffle_epi8(shifts, _mm512_srli_epi16(y, kPowerBits)));
}

inline std::int32_t powers_row(const Vec* y, std::uint8_t* out) {
  // Packing goes lane by lane: lane i holds dword i of each of the four vectors.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i low = _mm512_packs_epi32(_mm512_cvtps_epi32(y[0]), _mm512_cvtps_epi32(y[1]));
  const __m512i high = _mm512_packs_epi32(_mm512_cvtps_epi32(y[2]), _mm512_cvtps_epi32(y[3]));
  const __m512i bytes =
      _mm512_permutexvar_epi32(order, _mm512_packus_epi16(powers(low), powers(high)));
  _mm512_storeu_si512(out, bytes);
  return static_cast<std::int32_t>(
      _mm512_reduce_add_epi64(_mm512_sad_epu8(bytes, _mm512_setzero_si512())));
}

}  // namespace
}  // namespace cqkv::kernels
