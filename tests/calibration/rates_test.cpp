// Choosing rates: against every choice where these are few; and what coding costs a head, spelled
// out.
#include "calibration/rates.h"

#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "core/rng.h"
#include "support/codebooks.h"

namespace cqkv {
namespace {

struct Choice {
  double bits = 0;
  double loss = 0;
};

Choice sum_of(const std::vector<std::vector<RateOption>>& heads,
              const std::vector<std::size_t>& chosen) {
  Choice sum;
  for (std::size_t i = 0; i < heads.size(); i++) {
    sum.bits += heads[i][chosen[i]].bits;
    sum.loss += heads[i][chosen[i]].loss;
  }
  return sum;
}

// The least loss of all choices within the budget.
double best_loss(const std::vector<std::vector<RateOption>>& heads, double budget) {
  double best = std::numeric_limits<double>::infinity();
  std::vector<std::size_t> chosen(heads.size(), 0);
  for (;;) {
    const Choice sum = sum_of(heads, chosen);
    best = sum.bits <= budget ? std::min(best, sum.loss) : best;
    std::size_t i = 0;
    while (i < heads.size() && ++chosen[i] == heads[i].size()) {
      chosen[i++] = 0;
    }
    if (i == heads.size()) {
      return best;
    }
  }
}

// Greedy steps over convex hulls are optimal but for the last step, which is at most the largest
// gain of one head.
TEST(ChooseRates, IsNearlyTheBestChoice) {
  for (std::uint64_t seed = 0; seed < 30; seed++) {
    Rng rng(seed);
    std::vector<std::vector<RateOption>> heads(5);
    double largest = 0;
    for (auto& options : heads) {
      const double scale = std::exp(3 * rng.normal());
      for (const int dim : {64, 32, 16, 8, 4, 2}) {
        options.push_back({dim, 64.0 / dim * 8, scale * rng.uniform() / (64.0 / dim)});
        largest = std::max(largest, options.back().loss);
      }
    }
    for (const double budget : {40.0, 100.0, 320.0, 900.0, 1280.0}) {
      const Choice got = sum_of(heads, choose_rates(heads, budget));
      const double best = best_loss(heads, budget);
      ASSERT_LE(got.bits, budget);
      ASSERT_GE(got.loss, best - 1e-12);
      ASSERT_LE(got.loss, best + largest) << "seed " << seed << ", budget " << budget;
    }
  }
}

TEST(ChooseRates, SpendsWhereItHelps) {
  const std::vector<RateOption> sensitive = {{64, 8, 100}, {8, 64, 10}, {2, 256, 1}};
  const std::vector<RateOption> dull = {{64, 8, 0.1}, {8, 64, 0.05}, {2, 256, 0.2}};
  const std::vector<std::vector<RateOption>> heads = {dull, sensitive, dull};
  EXPECT_EQ(choose_rates(heads, 24), (std::vector<std::size_t>{0, 0, 0}));
  EXPECT_EQ(choose_rates(heads, 80), (std::vector<std::size_t>{0, 1, 0}));
  EXPECT_EQ(choose_rates(heads, 272), (std::vector<std::size_t>{0, 2, 0}));
  EXPECT_EQ(choose_rates(heads, 1e9), (std::vector<std::size_t>{1, 2, 1})) << "no bits for a loss";
  EXPECT_EQ(choose_rates(heads, 1), (std::vector<std::size_t>{0, 0, 0})) << "nothing is cheaper";
}

TEST(CodingLosses, AreSquaresOfTheChangesSecondOrder) {
  Rng rng(4);
  const TensorCodebook codebook = testing::random_tensor({4, 4}, 2, 8, 1);
  const std::size_t n_rows = 7;
  std::vector<float> rows(n_rows * 16);
  std::vector<float> gradients(rows.size());
  for (std::size_t i = 0; i < rows.size(); i++) {
    rows[i] = static_cast<float>(rng.normal());
    gradients[i] = static_cast<float>(rng.normal());
  }
  std::vector<std::uint16_t> codes(n_rows * 4);
  std::vector<float> decoded(rows.size());
  codebook.encode(rows.data(), n_rows, 16, codes.data());
  codebook.decode(codes.data(), n_rows, decoded.data(), 16);
  double want[2] = {0, 0};
  for (std::size_t t = 0; t < n_rows; t++) {
    for (std::size_t head = 0; head < 2; head++) {
      double change = 0;
      for (std::size_t d = t * 16 + head * 8; d < t * 16 + head * 8 + 8; d++) {
        change += static_cast<double>(gradients[d]) * (decoded[d] - rows[d]);
      }
      want[head] += change * change / 7;
    }
  }
  const auto got = coding_losses(codebook, rows.data(), gradients.data(), n_rows);
  ASSERT_EQ(got.size(), 2U);
  EXPECT_NEAR(got[0], want[0], 1e-4 * want[0]);
  EXPECT_NEAR(got[1], want[1], 1e-4 * want[1]);
}

}  // namespace
}  // namespace cqkv
