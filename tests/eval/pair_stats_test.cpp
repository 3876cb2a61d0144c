// The statistics on numbers whose results are known by hand or from the plain formula.
#include "eval/pair_stats.h"

#include <cmath>

#include <gtest/gtest.h>

#include "core/rng.h"

namespace cqkv::eval {
namespace {

TEST(RunningMean, IsTheTextbookFormula) {
  // 1, 2, 3, 4: mean 2.5, sample variance 5/3, standard error sqrt(5/12).
  RunningMean mean;
  EXPECT_EQ(mean.mean(), 0);
  EXPECT_EQ(mean.standard_error(), 0);
  for (const double value : {1, 2, 3, 4}) {
    mean.add(value);
  }
  EXPECT_DOUBLE_EQ(mean.mean(), 2.5);
  EXPECT_DOUBLE_EQ(mean.standard_error(), std::sqrt(5.0 / 12.0));
}

TEST(RunningMean, LargeOffsetLosesNothing) {
  RunningMean mean;
  for (int i = 0; i < 1000; i++) {
    mean.add(1e9 + (i % 2));
  }
  EXPECT_NEAR(mean.standard_error(), std::sqrt(0.25 / 999), 1e-9);
}

TEST(Quantile, InterpolatesBetweenNeighbours) {
  std::vector<float> values = {4, 1, 3, 2, 5};
  EXPECT_DOUBLE_EQ(quantile(values, 0), 1);
  EXPECT_DOUBLE_EQ(quantile(values, 0.5), 3);
  EXPECT_DOUBLE_EQ(quantile(values, 0.625), 3.5);
  EXPECT_DOUBLE_EQ(quantile(values, 1), 5);
  values.clear();
  EXPECT_DOUBLE_EQ(quantile(values, 0.99), 0);
}

LogitComparison token(double base, double other, double divergence, bool same_top) {
  return {base, other, divergence, same_top};
}

// Every token costs 0.1 nats more: the ratio is certain although the perplexities are not.
TEST(PairStats, PairingRemovesWhatTheTextDoes) {
  PairStats stats;
  Rng rng(1);
  for (int i = 0; i < 100; i++) {
    const double base = 3 + rng.normal();
    stats.add(token(base, base + 0.1, 0.01, true));
  }
  const PairSummary summary = stats.summary();
  EXPECT_EQ(summary.n_scored, 100U);
  EXPECT_NEAR(summary.ratio, std::exp(0.1), 1e-12);
  EXPECT_NEAR(summary.ratio_se, 0, 1e-12);
  EXPECT_GT(summary.ppl_se, 0.1);
  EXPECT_NEAR(summary.ppl / summary.ppl_base, summary.ratio, 1e-12);
}

TEST(PairStats, PairedStandardErrorByHand) {
  // Differences 0, 0.2, 0.4: mean 0.2, sample deviation 0.2, standard error 0.2 / sqrt(3).
  PairStats stats;
  stats.add(token(1, 1.0, 0.0, true));
  stats.add(token(2, 2.2, 0.1, false));
  stats.add(token(6, 6.4, 0.5, true));
  const PairSummary summary = stats.summary();
  EXPECT_NEAR(summary.ppl_base, std::exp(3.0), 1e-12);
  EXPECT_NEAR(summary.ppl_base_se, std::exp(3.0) * std::sqrt(7.0 / 3.0), 1e-12);
  EXPECT_NEAR(summary.ratio, std::exp(0.2), 1e-12);
  EXPECT_NEAR(summary.ratio_se, std::exp(0.2) * 0.2 / std::sqrt(3.0), 1e-12);
  EXPECT_NEAR(summary.kld_mean, 0.2, 1e-12);
  EXPECT_NEAR(summary.kld_median, 0.1, 1e-7);
  EXPECT_NEAR(summary.kld_p99, 0.1 + 0.98 * 0.4, 1e-7);
  EXPECT_NEAR(summary.kld_p999, 0.1 + 0.998 * 0.4, 1e-7);
  EXPECT_NEAR(summary.top1, 2.0 / 3.0, 1e-12);
  EXPECT_NEAR(summary.top1_se, std::sqrt(2.0 / 9.0 / 2.0), 1e-12);
}

// Over many repetitions the standard error must be the spread of the estimate.
TEST(PairStats, ChunksByHand) {
  PairStats stats;
  const auto add = [&](double difference) {
    LogitComparison token;
    token.nll_base = 1.0;
    token.nll_other = 1.0 + difference;
    stats.add(token);
  };
  // Two chunks with mean differences 0.2 and 0.6: standard deviation 0.4 / sqrt(2), so
  // the standard error of their mean is 0.2.
  add(0.1);
  add(0.3);
  stats.end_chunk();
  add(0.6);
  add(0.6);
  stats.end_chunk();
  stats.end_chunk();  // nothing since the last
  const PairSummary summary = stats.summary();
  ASSERT_EQ(summary.chunk_ratios.size(), 2U);
  EXPECT_NEAR(summary.chunk_ratios[0], std::exp(0.2), 1e-12);
  EXPECT_NEAR(summary.chunk_ratios[1], std::exp(0.6), 1e-12);
  EXPECT_NEAR(summary.ratio, std::exp(0.4), 1e-12);
  EXPECT_NEAR(summary.ratio_se_chunks, 0.2 * std::exp(0.4), 1e-12);
}

TEST(PairStats, StandardErrorIsTheSpreadOfTheRatio) {
  RunningMean ratios;
  RunningMean errors;
  for (std::uint64_t repetition = 0; repetition < 400; repetition++) {
    Rng rng(7, repetition);
    PairStats stats;
    for (int i = 0; i < 200; i++) {
      const double base = 3 + rng.normal();
      stats.add(token(base, base + 0.3 + 0.5 * rng.normal(), 0, true));
    }
    ratios.add(stats.summary().ratio);
    errors.add(stats.summary().ratio_se);
  }
  const double spread = ratios.standard_error() * std::sqrt(400.0);
  EXPECT_NEAR(errors.mean() / spread, 1.0, 0.15);  // spread known to 1 / sqrt(800)
  EXPECT_NEAR(ratios.mean(), std::exp(0.3), 0.01);
}

TEST(PairStats, NothingScored) {
  EXPECT_EQ(PairStats().summary().n_scored, 0U);
}

}  // namespace
}  // namespace cqkv::eval
