// e^x, for floats and for the compiler's vectors of them: the one reduction and the one polynomial,
// those of Cephes' expf without its branches. What is not here are last steps and the treatment of
// numbers whose e^x is no normal number: those of attention are in softmax-inl.h, those of
// calibration in model_pass/dense-inl.h, those of perplexities in eval/logit_compare.cpp.
#pragma once

#include <cstdint>

#include "kernels/float_constants.h"

namespace cqkv::kernels {
namespace {

// e^x = 2^n e^r with n the integer next to x / ln 2, so that |r| <= ln 2 / 2, and
// e^r = 1 + r + r^2 tail.
template <typename V>
struct ExpParts {
  V shifted;  // n + kRound: n stands in the low bits
  V r;
  V tail;
};

// multiply_add(a, b, c) is a b + c, rounded once or twice.
template <typename V, typename MultiplyAdd>
inline ExpParts<V> exp_parts(V x, MultiplyAdd multiply_add) {
  const auto all = [](float value) { return value - V{}; };
  ExpParts<V> e;
  e.shifted = multiply_add(x, all(1.44269504F), all(kRound));
  const V n = e.shifted - kRound;
  e.r = multiply_add(n, all(-0.693359375F), x);
  e.r = multiply_add(n, all(2.12194440e-4F), e.r);
  e.tail = all(1.9875691500e-4F);
  e.tail = multiply_add(e.tail, e.r, all(1.3981999507e-3F));
  e.tail = multiply_add(e.tail, e.r, all(8.3334519073e-3F));
  e.tail = multiply_add(e.tail, e.r, all(4.1665795894e-2F));
  e.tail = multiply_add(e.tail, e.r, all(1.6666665459e-1F));
  e.tail = multiply_add(e.tail, e.r, all(5.0000001201e-1F));
  return e;
}

// 2^n for -126 <= n <= 127; `Int` is the integers of V's size.
template <typename Int, typename V>
inline V exp_scale(const ExpParts<V>& e) {
  constexpr std::int32_t kZero = __builtin_bit_cast(std::int32_t, kRound);
  return __builtin_bit_cast(V, (__builtin_bit_cast(Int, e.shifted) - kZero + 127) << 23);
}

}  // namespace
}  // namespace cqkv::kernels
