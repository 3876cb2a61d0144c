// The AVX2 level: 8 lanes, fused multiply-add, half floats in hardware.
#include <cstddef>
#include <cstdint>

#include <immintrin.h>

namespace cqkv::kernels {
namespace {

constexpr int kLanes = 8;
using Vec = float __attribute__((vector_size(32)));
using IntVec = std::int32_t __attribute__((vector_size(32)));

inline Vec multiply_add(Vec a, Vec b, Vec c) {
  return _mm256_fmadd_ps(a, b, c);
}

inline void widen_halves(const std::uint16_t* in, std::size_t n, float* out) {
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(halves));
  }
  for (; i < n; i++) {
    out[i] = _cvtsh_ss(in[i]);
  }
}

inline void narrow_row(const IntVec* words, std::uint8_t* out) {
  // Packing goes lane by lane: dwords of four tokens come out as 0 2 4 6 1 3 5 7.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int v = 0; v < 8; v += 4) {
    const __m256i low = _mm256_packs_epi32(__builtin_bit_cast(__m256i, words[v]),
                                           __builtin_bit_cast(__m256i, words[v + 1]));
    const __m256i high = _mm256_packs_epi32(__builtin_bit_cast(__m256i, words[v + 2]),
                                            __builtin_bit_cast(__m256i, words[v + 3]));
    const __m256i bytes = _mm256_packus_epi16(low, high);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + v * kLanes),
                        _mm256_permutevar8x32_epi32(bytes, order));
  }
}

}  // namespace
}  // namespace cqkv::kernels

#include "kernels/integer_avx2.inc"
#include "kernels/make_table.inc"

namespace cqkv::kernels {

const KernelTable kAvx2Table = make_table("avx2");

}  // namespace cqkv::kernels
