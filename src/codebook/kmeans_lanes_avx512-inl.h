// The lanes of AVX-512 (their names: kmeans_lanes-inl.h): sixteen as one register. Results are
// those of AVX2.
#pragma once

#include <immintrin.h>

#include "codebook/kmeans_kernels.h"

namespace cqkv::kmeans {
namespace {

using Lanes = __m512;

inline Lanes load(const float* from) {
  return _mm512_loadu_ps(from);
}

inline void store(float* to, Lanes a) {
  _mm512_storeu_ps(to, a);
}

inline Lanes splat(float value) {
  return _mm512_set1_ps(value);
}

inline Lanes add(Lanes a, Lanes b) {
  return _mm512_add_ps(a, b);
}

inline Lanes subtract(Lanes a, Lanes b) {
  return _mm512_sub_ps(a, b);
}

// Masked with all lanes on, here and in `lowest`: the plain form makes g++ 12 warn of an
// uninitialized variable in its own header (GCC bug 105593).
inline Lanes smaller(Lanes a, Lanes b) {
  return _mm512_maskz_min_ps(0xFFFF, a, b);
}

inline Lanes add_product(Lanes a, Lanes b, Lanes sum) {
  return _mm512_fmadd_ps(a, b, sum);
}

inline Lanes add_square(Lanes difference, Lanes sum) {
  return add_product(difference, difference, sum);
}

inline Lanes select_below(Lanes a, Lanes b, Lanes c, Lanes d) {
  return _mm512_mask_mov_ps(d, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), c);
}

inline Lanes without(Lanes a, int lane) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __mmask16 out = _mm512_cmpeq_epi32_mask(lanes, _mm512_set1_epi32(lane));
  return _mm512_mask_mov_ps(a, out, _mm512_set1_ps(__builtin_inff()));
}

inline float root(float value) {
  return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(value)));
}

inline float lowest(Lanes a) {
  const __m256 eight = _mm256_min_ps(_mm512_maskz_extractf32x8_ps(0xFF, a, 0),
                                     _mm512_maskz_extractf32x8_ps(0xFF, a, 1));
  const __m128 four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
}

inline unsigned mask_below(Lanes a, float limit) {
  return _mm512_cmp_ps_mask(a, _mm512_set1_ps(limit), _CMP_LT_OQ);
}

inline unsigned mask_equal(Lanes a, float value) {
  return _mm512_cmp_ps_mask(a, _mm512_set1_ps(value), _CMP_EQ_OQ);
}

}  // namespace
}  // namespace cqkv::kmeans
