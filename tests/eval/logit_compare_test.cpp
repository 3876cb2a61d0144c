// compare_logits against a reference in double precision, and on distributions whose
// divergence is known. Left out: speed.
#include "eval/logit_compare.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "core/rng.h"

namespace cqkv::eval {
namespace {

std::vector<double> log_softmax(const std::vector<float>& logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) {
    sum += std::exp(logit - max);
  }
  std::vector<double> result(logits.size());
  for (std::size_t i = 0; i < logits.size(); i++) {
    result[i] = logits[i] - max - std::log(sum);
  }
  return result;
}

double reference_divergence(const std::vector<float>& base, const std::vector<float>& other) {
  const auto p = log_softmax(base);
  const auto q = log_softmax(other);
  double result = 0;
  for (std::size_t i = 0; i < p.size(); i++) {
    result += p[i] == -std::numeric_limits<double>::infinity() ? 0 : std::exp(p[i]) * (p[i] - q[i]);
  }
  return result;
}

std::vector<float> random_logits(std::size_t n, double scale, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> result(n);
  for (auto& value : result) {
    value = static_cast<float>(scale * rng.normal());
  }
  return result;
}

// Tolerance: exponentials of 2 ulp and f32 sums of 64 terms leave about 1e-6 of each sum.
TEST(LogitCompare, AgreesWithDoublePrecision) {
  for (const std::size_t n : {1U, 2U, 15U, 16U, 17U, 1023U, 1024U, 1025U, 49152U, 151936U}) {
    for (const double scale : {0.1, 1.0, 5.0, 40.0}) {
      const auto base = random_logits(n, scale, n);
      auto other = random_logits(n, 0.3, n + 1);
      for (std::size_t i = 0; i < n; i++) {
        other[i] += base[i];
      }
      const std::size_t target = n / 3;
      const auto got = compare_logits(base.data(), other.data(), n, target);
      SCOPED_TRACE(::testing::Message() << n << " logits of scale " << scale);
      EXPECT_NEAR(got.nll_base, -log_softmax(base)[target], 2e-6 * (1 + scale));
      EXPECT_NEAR(got.nll_other, -log_softmax(other)[target], 2e-6 * (1 + scale));
      EXPECT_NEAR(got.kl_divergence, reference_divergence(base, other), 4e-6);
      EXPECT_EQ(got.same_top, std::max_element(base.begin(), base.end()) - base.begin() ==
                                  std::max_element(other.begin(), other.end()) - other.begin());
      EXPECT_EQ(negative_log_likelihood(base.data(), n, target), got.nll_base);
    }
  }
}

// As far apart as two forward passes that differ in rounding: the floor of what can be
// told apart must be far below it (stock variants are at 1e-3).
TEST(LogitCompare, SmallDivergencesAreAccurate) {
  const std::size_t n = 49152;
  const auto base = random_logits(n, 3, 1);
  for (const double noise : {1e-1, 1e-2, 1e-3}) {
    auto other = random_logits(n, noise, 2);
    for (std::size_t i = 0; i < n; i++) {
      other[i] += base[i];
    }
    const double want = reference_divergence(base, other);
    const auto got = compare_logits(base.data(), other.data(), n, 0);
    EXPECT_NEAR(got.kl_divergence, want, 1e-3 * want + 2e-7) << noise;
  }
}

TEST(LogitCompare, KnownDistributions) {
  // Base (1/2, 1/4, 1/4), other (1/4, 1/2, 1/4): KL = 1/2 ln 2 - 1/4 ln 2.
  const float ln2 = std::log(2.0F);
  const std::vector<float> base = {ln2, 0, 0};
  const std::vector<float> other = {7, 7 + ln2, 7};  // a shift of all changes nothing
  const auto got = compare_logits(base.data(), other.data(), 3, 0);
  EXPECT_NEAR(got.nll_base, std::log(2.0), 1e-6);
  EXPECT_NEAR(got.nll_other, std::log(4.0), 1e-6);
  EXPECT_NEAR(got.kl_divergence, 0.25 * std::log(2.0), 1e-6);
  EXPECT_FALSE(got.same_top);
}

TEST(LogitCompare, EqualRowsDivergeByExactlyNothing) {
  const auto row = random_logits(49152, 10, 3);
  const auto got = compare_logits(row.data(), row.data(), row.size(), 5);
  EXPECT_EQ(got.kl_divergence, 0);
  EXPECT_EQ(got.nll_base, got.nll_other);
  EXPECT_TRUE(got.same_top);
}

TEST(LogitCompare, FirstOfEqualMaximaIsTheTop) {
  std::vector<float> base(100, 0);
  std::vector<float> other(100, 0);
  base[20] = base[70] = 3;
  other[70] = 3;
  EXPECT_FALSE(compare_logits(base.data(), other.data(), 100, 0).same_top);
  other[20] = 3;
  EXPECT_TRUE(compare_logits(base.data(), other.data(), 100, 0).same_top);
}

TEST(LogitCompare, ForbiddenTokensAndBrokenRows) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const auto base = random_logits(40, 1, 4);
  auto forbidden = base;
  forbidden[0] = forbidden[39] = -kInf;
  const auto same = compare_logits(forbidden.data(), forbidden.data(), 40, 3);
  EXPECT_EQ(same.kl_divergence, 0);
  EXPECT_NEAR(compare_logits(forbidden.data(), base.data(), 40, 3).kl_divergence,
              reference_divergence(forbidden, base), 1e-6);
  for (const std::size_t place : {0U, 17U, 39U}) {
    for (const float value : {std::numeric_limits<float>::quiet_NaN(), kInf}) {
      auto broken = base;
      broken[place] = value;
      EXPECT_FALSE(std::isfinite(compare_logits(base.data(), broken.data(), 40, 3).kl_divergence));
      EXPECT_FALSE(std::isfinite(negative_log_likelihood(broken.data(), 40, 3)));
    }
  }
}

}  // namespace
}  // namespace cqkv::eval
