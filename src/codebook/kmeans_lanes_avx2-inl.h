// The lanes of AVX2 (their names: kmeans_lanes-inl.h): sixteen as two registers, products fused
// into sums.
#pragma once

#include <immintrin.h>

#include "codebook/kmeans_kernels.h"

namespace cqkv::kmeans {
namespace {

struct Lanes {
  __m256 low;
  __m256 high;
};

inline Lanes load(const float* from) {
  return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
}

inline void store(float* to, Lanes a) {
  _mm256_storeu_ps(to, a.low);
  _mm256_storeu_ps(to + 8, a.high);
}

inline Lanes splat(float value) {
  const __m256 all = _mm256_set1_ps(value);
  return {all, all};
}

inline Lanes add(Lanes a, Lanes b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}

inline Lanes subtract(Lanes a, Lanes b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}

inline Lanes smaller(Lanes a, Lanes b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}

inline Lanes add_product(Lanes a, Lanes b, Lanes sum) {
  return {_mm256_fmadd_ps(a.low, b.low, sum.low), _mm256_fmadd_ps(a.high, b.high, sum.high)};
}

inline Lanes add_square(Lanes difference, Lanes sum) {
  return add_product(difference, difference, sum);
}

inline Lanes select_below(Lanes a, Lanes b, Lanes c, Lanes d) {
  return {_mm256_blendv_ps(d.low, c.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
          _mm256_blendv_ps(d.high, c.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
}

inline Lanes without(Lanes a, int lane) {
  const __m256 infinity = _mm256_set1_ps(__builtin_inff());
  const __m256i all = _mm256_set1_epi32(lane);
  const __m256i low = _mm256_cmpeq_epi32(all, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  const __m256i high = _mm256_cmpeq_epi32(all, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15));
  return {_mm256_blendv_ps(a.low, infinity, _mm256_castsi256_ps(low)),
          _mm256_blendv_ps(a.high, infinity, _mm256_castsi256_ps(high))};
}

inline float root(float value) {
  return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(value)));
}

inline float lowest(Lanes a) {
  const __m256 eight = _mm256_min_ps(a.low, a.high);
  const __m128 four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
}

inline unsigned joined(__m256 low, __m256 high) {
  return static_cast<unsigned>(_mm256_movemask_ps(low)) |
         static_cast<unsigned>(_mm256_movemask_ps(high)) << 8U;
}

inline unsigned mask_below(Lanes a, float limit) {
  const __m256 all = _mm256_set1_ps(limit);
  return joined(_mm256_cmp_ps(a.low, all, _CMP_LT_OQ), _mm256_cmp_ps(a.high, all, _CMP_LT_OQ));
}

inline unsigned mask_equal(Lanes a, float value) {
  const __m256 all = _mm256_set1_ps(value);
  return joined(_mm256_cmp_ps(a.low, all, _CMP_EQ_OQ), _mm256_cmp_ps(a.high, all, _CMP_EQ_OQ));
}

}  // namespace
}  // namespace cqkv::kmeans
