// See logit_compare.h. Loops run over blocks of kLanes independent accumulators, which
// the compiler turns into vectors without being allowed to reorder sums by itself.
#include "eval/logit_compare.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/exp-inl.h"

namespace cqkv::eval {
namespace {

constexpr std::size_t kLanes = 16;
constexpr std::size_t kBlock = 64 * kLanes;  // f32 partial sums of 64 terms

using Lanes = std::array<float, kLanes>;

// e^x for -87 <= x <= 0. The last step takes (tail r) r, not tail r^2 as elsewhere: so were all
// published figures computed, and these must not change by a bit.
inline float exp_negative(float x) {
  const auto e = kernels::exp_parts(x, [](float a, float b, float c) { return a * b + c; });
  return (e.tail * e.r * e.r + e.r + 1.0F) * kernels::exp_scale<std::int32_t>(e);
}

float max_logit(const float* logits, std::size_t n) {
  Lanes lanes;
  lanes.fill(-std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (std::size_t j = 0; j < kLanes; j++) {
      lanes[j] = lanes[j] < logits[i + j] ? logits[i + j] : lanes[j];
    }
  }
  float result = *std::max_element(lanes.begin(), lanes.end());
  for (; i < n; i++) {
    result = result < logits[i] ? logits[i] : result;
  }
  return result;
}

// Keeps -inf finite, so that probability zero times it is zero; NaN goes through.
inline float shifted(float logit, float max) {
  const float x = logit - max;
  return x < -1000.0F ? -1000.0F : x;
}

inline float exp_shifted(float x) {
  return exp_negative(x < -87.0F ? -87.0F : x);
}

double total(const Lanes& lanes) {
  double sum = 0;
  for (const float lane : lanes) {
    sum += lane;
  }
  return sum;
}

struct Sums {
  double base = 0;      // sum of exp(base - max)
  double other = 0;     // the same of the other row
  double weighted = 0;  // sum of exp(base - max) * ((base - max) - (other - max))
};

double sum_exp(const float* logits, std::size_t n, float max) {
  double result = 0;
  for (std::size_t begin = 0; begin < n; begin += kBlock) {
    const std::size_t end = std::min(n, begin + kBlock);
    Lanes lanes{};
    std::size_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (std::size_t j = 0; j < kLanes; j++) {
        lanes[j] += exp_shifted(shifted(logits[i + j], max));
      }
    }
    for (; i < end; i++) {
      lanes[0] += exp_shifted(shifted(logits[i], max));
    }
    result += total(lanes);
  }
  return result;
}

Sums sum_both(const float* base, const float* other, std::size_t n, float max_base,
              float max_other) {
  Sums result;
  for (std::size_t begin = 0; begin < n; begin += kBlock) {
    const std::size_t end = std::min(n, begin + kBlock);
    Lanes sum_base{};
    Lanes sum_other{};
    Lanes weighted{};
    const auto add = [&](std::size_t i, std::size_t j) {
      const float x = shifted(base[i], max_base);
      const float y = shifted(other[i], max_other);
      const float p = exp_shifted(x);
      sum_base[j] += p;
      sum_other[j] += exp_shifted(y);
      weighted[j] += p * (x - y);
    };
    std::size_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (std::size_t j = 0; j < kLanes; j++) {
        add(i + j, j);
      }
    }
    for (; i < end; i++) {
      add(i, 0);
    }
    result.base += total(sum_base);
    result.other += total(sum_other);
    result.weighted += total(weighted);
  }
  return result;
}

}  // namespace

LogitComparison compare_logits(const float* base, const float* other, std::size_t n_vocab,
                               std::size_t target) {
  const float max_base = max_logit(base, n_vocab);
  const float max_other = max_logit(other, n_vocab);
  const Sums sums = sum_both(base, other, n_vocab, max_base, max_other);
  const double log_base = std::log(sums.base);
  const double log_other = std::log(sums.other);
  LogitComparison result;
  result.nll_base = log_base - (static_cast<double>(base[target]) - max_base);
  result.nll_other = log_other - (static_cast<double>(other[target]) - max_other);
  result.kl_divergence = sums.weighted / sums.base - (log_base - log_other);
  result.same_top = std::find(base, base + n_vocab, max_base) - base ==
                    std::find(other, other + n_vocab, max_other) - other;
  return result;
}

double negative_log_likelihood(const float* logits, std::size_t n_vocab, std::size_t target) {
  const float max = max_logit(logits, n_vocab);
  return std::log(sum_exp(logits, n_vocab, max)) - (static_cast<double>(logits[target]) - max);
}

}  // namespace cqkv::eval
