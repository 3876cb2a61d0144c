// The AVX-512 level: 16 lanes, fused multiply-add, half floats in hardware.
#include <cstddef>
#include <cstdint>

#include <immintrin.h>

namespace cqkv::kernels {
namespace {

constexpr int kLanes = 16;
using Vec = float __attribute__((vector_size(64)));

inline Vec multiply_add(Vec a, Vec b, Vec c) {
  return _mm512_fmadd_ps(a, b, c);
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

}  // namespace
}  // namespace cqkv::kernels

#include "kernels/kernels_impl.inc"

namespace cqkv::kernels {

const KernelTable kAvx512Table = make_table("avx512");

}  // namespace cqkv::kernels
