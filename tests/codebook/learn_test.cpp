// Learning a tensor's codebook: groups are learned independently of threads and of each
// other, errors name the place. What k-means itself promises is in kmeans_test.cpp.
#include "codebook/learn.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/rng.h"

namespace cqkv {
namespace {

constexpr int kHeads = 2;
constexpr int kHeadDim = 32;
constexpr int kChannels = kHeads * kHeadDim;
constexpr std::size_t kTokens = 700;
constexpr std::size_t kStride = kChannels + 3;

class Learn : public testing::Test {
 protected:
  Learn() : rows(kTokens * kStride), weights(kTokens * kChannels / 8) {
    Rng rng(11);
    for (float& value : rows) {
      value = static_cast<float>(rng.normal());
    }
    for (float& value : weights) {
      value = static_cast<float>(1e-12 * std::exp(rng.normal()));
    }
    input.spec = {8, 5};
    input.n_kv_heads = kHeads;
    input.head_dim = kHeadDim;
    input.rows = rows.data();
    input.n_tokens = kTokens;
    input.row_stride = kStride;
    input.weights = weights;
  }

  Result<LearnedTensor> learn(int n_threads) {
    ThreadParallelFor parallel(n_threads);
    return learn_tensor_codebook(input, options, parallel);
  }

  std::vector<float> rows;
  std::vector<float> weights;
  LearnInput input;
  LearnOptions options;
};

TEST_F(Learn, SameBitsForAnyNumberOfThreads) {
  const auto one = learn(1);
  ASSERT_TRUE(one.ok());
  for (const int n : {2, 3, 8}) {
    const auto many = learn(n);
    ASSERT_TRUE(many.ok());
    EXPECT_TRUE(std::equal(one->codebook.centroids().begin(), one->codebook.centroids().end(),
                           many->codebook.centroids().begin()))
        << n << " threads";
    EXPECT_EQ(one->stats.objective, many->stats.objective);
  }
}

TEST_F(Learn, StatsAreConsistent) {
  const auto learned = learn(2);
  ASSERT_TRUE(learned.ok());
  EXPECT_LT(learned->stats.objective, learned->stats.start_objective);
  EXPECT_LT(learned->stats.start_objective, learned->stats.spread);
  EXPECT_GT(learned->stats.relative_error, 0);
  EXPECT_LT(learned->stats.relative_error, 1);
  EXPECT_EQ(learned->stats.n_converged, kChannels / 8);
}

TEST_F(Learn, GroupsAreIndependent) {
  const auto all = learn(2);
  ASSERT_TRUE(all.ok());
  // The second half of the channels becomes noise of another kind: the first head stays.
  for (std::size_t t = 0; t < kTokens; t++) {
    for (int c = kHeadDim; c < kChannels; c++) {
      rows[t * kStride + c] *= -3;
    }
  }
  const auto changed = learn(2);
  ASSERT_TRUE(changed.ok());
  const auto one_head = static_cast<std::ptrdiff_t>(all->codebook.centroids().size() / kHeads);
  const auto before = all->codebook.centroids();
  const auto after = changed->codebook.centroids();
  EXPECT_TRUE(std::equal(before.begin(), before.begin() + one_head, after.begin()));
  EXPECT_FALSE(std::equal(before.begin() + one_head, before.end(), after.begin() + one_head));
}

TEST_F(Learn, TensorsDrawDifferentStarts) {
  const auto first = learn(1);
  options.tensor = 1;
  const auto second = learn(1);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_FALSE(std::equal(first->codebook.centroids().begin(), first->codebook.centroids().end(),
                          second->codebook.centroids().begin()));
}

TEST_F(Learn, NoWeightsMeanEqualWeights) {
  std::fill(weights.begin(), weights.end(), 0.25F);
  const auto equal = learn(1);
  input.weights = {};
  const auto none = learn(1);
  ASSERT_TRUE(equal.ok() && none.ok());
  EXPECT_TRUE(std::equal(equal->codebook.centroids().begin(), equal->codebook.centroids().end(),
                         none->codebook.centroids().begin()));
}

TEST_F(Learn, WeightsOfOneGroupZeroAreReported) {
  for (std::size_t t = 0; t < kTokens; t++) {
    weights[t * kChannels / 8 + 3] = 0;
  }
  const auto learned = learn(2);
  ASSERT_TRUE(learned.ok());
  EXPECT_EQ(learned->stats.n_uniform_fallback, 1);
}

TEST_F(Learn, CodingErrorIsTheObjective) {
  const auto learned = learn(2);
  ASSERT_TRUE(learned.ok());
  std::vector<std::uint16_t> codes(kTokens * kChannels / 8);
  std::vector<float> decoded(kTokens * kStride);
  learned->codebook.encode(rows.data(), kTokens, kStride, codes.data());
  learned->codebook.decode(codes.data(), kTokens, decoded.data(), kStride);
  double error = 0;
  for (std::size_t t = 0; t < kTokens; t++) {
    for (std::size_t c = 0; c < kChannels; c++) {
      const double step = static_cast<double>(rows[t * kStride + c] - decoded[t * kStride + c]);
      error += static_cast<double>(weights[t * kChannels / 8 + c / 8]) * step * step;
    }
  }
  // The codes are one assignment further (lower) and centroids rounded to 11 bits (higher,
  // by up to (2^-11 |c|)^2, some 1e-6 of the error).
  EXPECT_NEAR(error, learned->stats.objective, 1e-3 * error);
}

// With fewer vectors than centroids each is its own centroid: nothing is lost, nothing learned.
TEST_F(Learn, RefusesFewerVectorsThanCentroids) {
  input.spec = {8, 10};
  const auto learned = learn(1);
  EXPECT_EQ(learned.status().code(), StatusCode::kInvalidArgument);
  for (const char* word : {"got 700 vectors", "1024 centroids of 8c10b", "more tokens"}) {
    EXPECT_NE(learned.status().message().find(word), std::string::npos)
        << learned.status().message();
  }
  input.spec = {8, 5};
  input.n_tokens = 32;
  input.weights = input.weights.first(input.n_tokens * kChannels / 8);
  EXPECT_TRUE(learn(1).ok());
}

TEST_F(Learn, ErrorOfTheRowsLearnedFromIsTheReportedOne) {
  const auto learned = learn(1);
  ASSERT_TRUE(learned.ok());
  for (const int n_threads : {1, 3}) {
    ThreadParallelFor parallel(n_threads);
    const auto error = relative_coding_error(learned->codebook, input, parallel);
    ASSERT_TRUE(error.ok());
    // As above: one assignment further and 16-bit centroids.
    EXPECT_NEAR(*error, learned->stats.relative_error, 1e-3 * *error);
  }
}

// What the figure is for: 32 centroids from 40 vectors fit those and nothing else.
TEST_F(Learn, ErrorOfOtherRowsShowsAFitByHeart) {
  auto other = input;
  other.rows += 40 * kStride;
  other.n_tokens -= 40;
  other.weights = other.weights.subspan(40 * kChannels / 8);
  input.n_tokens = 40;
  input.weights = input.weights.first(40 * kChannels / 8);
  const auto learned = learn(1);
  ASSERT_TRUE(learned.ok());
  ThreadParallelFor parallel(1);
  const auto error = relative_coding_error(learned->codebook, other, parallel);
  ASSERT_TRUE(error.ok());
  EXPECT_LT(learned->stats.relative_error, 0.1);
  EXPECT_GT(*error, 0.5);
}

TEST_F(Learn, ErrorOfGroupsWithoutSpreadOrWeight) {
  input.spec = {8, 1};
  std::vector<float> centroids(kChannels * 2, 0.0F);
  for (std::size_t i = 0; i < centroids.size(); i += 16) {
    centroids[i] = 1;
  }
  const auto codebook = TensorCodebook::create(input.spec, kHeads, kHeadDim, centroids);
  ASSERT_TRUE(codebook.ok());
  std::fill(rows.begin(), rows.end(), 0.25F);
  std::fill(weights.begin(), weights.end(), 0.0F);
  ThreadParallelFor parallel(1);
  EXPECT_EQ(*relative_coding_error(*codebook, input, parallel), 0);
  // Nor do differences that a 16-bit cache would not see: of one text again and again, what
  // coding loses of them once was a billion per cent.
  for (std::size_t t = 0; t < kTokens; t++) {
    rows[t * kStride] = t % 2 == 1 ? 0.25F : 0.25F + 0x1p-16F;
  }
  EXPECT_EQ(*relative_coding_error(*codebook, input, parallel), 0);
  // The first channel of the last group alternates between 0 and 1/2, and codes know 0 only:
  // 1/4 is lost every other token where the variance is 1/16. One group of eight.
  const int last = kChannels - 8;
  for (std::size_t t = 0; t < kTokens; t++) {
    for (int c = 0; c < kChannels; c++) {
      rows[t * kStride + c] = c == last && t % 2 == 1 ? 0.5F : 0.0F;
    }
  }
  EXPECT_NEAR(*relative_coding_error(*codebook, input, parallel), 2.0 / 8, 1e-12);
}

TEST_F(Learn, ErrorRefusesShapesThatDisagree) {
  const auto learned = learn(1);
  ASSERT_TRUE(learned.ok());
  ThreadParallelFor parallel(1);
  auto bad = input;
  bad.spec = {4, 5};
  bad.weights = {};
  EXPECT_EQ(relative_coding_error(learned->codebook, bad, parallel).status().code(),
            StatusCode::kInvalidArgument);
  bad = input;
  bad.n_tokens = 0;
  bad.weights = {};
  EXPECT_EQ(relative_coding_error(learned->codebook, bad, parallel).status().code(),
            StatusCode::kInvalidArgument);
}

TEST_F(Learn, ReportsProgress) {
  std::vector<int> done;
  options.progress = [&](int n, int total) {
    EXPECT_EQ(total, kChannels / 8);
    done.push_back(n);
  };
  ASSERT_TRUE(learn(3).ok());
  ASSERT_EQ(done.size(), static_cast<std::size_t>(kChannels / 8));
  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
  EXPECT_EQ(done.back(), kChannels / 8);
}

TEST_F(Learn, StopsWhenCancelled) {
  std::atomic<bool> cancelled{false};
  options.cancelled = &cancelled;
  options.progress = [&](int, int) { cancelled = true; };
  EXPECT_EQ(learn(2).status().code(), StatusCode::kCancelled);
}

TEST_F(Learn, ErrorsNameThePlace) {
  rows[kStride * 123 + kHeadDim + 17] = std::numeric_limits<float>::infinity();
  const auto learned = learn(2);
  EXPECT_EQ(learned.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(learned.status().message().find("KV head 1, group 2"), std::string::npos)
      << learned.status().message();
  EXPECT_NE(learned.status().message().find("point 123, channel 1"), std::string::npos)
      << learned.status().message();
}

TEST_F(Learn, RefusesCentroidsBeyondHalfFloats) {
  for (std::size_t t = 0; t < kTokens; t++) {
    rows[t * kStride + 5] += 70000;
  }
  const auto learned = learn(1);
  EXPECT_EQ(learned.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(learned.status().message().find("16-bit"), std::string::npos);
}

TEST_F(Learn, RefusesShapesThatDisagree) {
  const auto code = [&](const LearnInput& changed) {
    ThreadParallelFor parallel(1);
    return learn_tensor_codebook(changed, options, parallel).status().code();
  };
  auto bad = input;
  bad.spec = {0, 0};
  EXPECT_EQ(code(bad), StatusCode::kInvalidArgument);
  bad = input;
  bad.head_dim = 36;  // Not a multiple of 8.
  EXPECT_EQ(code(bad), StatusCode::kInvalidArgument);
  bad = input;
  bad.n_kv_heads = 0;
  EXPECT_EQ(code(bad), StatusCode::kInvalidArgument);
  bad = input;
  bad.row_stride = kChannels - 1;
  EXPECT_EQ(code(bad), StatusCode::kInvalidArgument);
  bad = input;
  bad.weights = bad.weights.first(10);
  EXPECT_EQ(code(bad), StatusCode::kInvalidArgument);
  bad = input;
  bad.n_tokens = 0;
  bad.weights = {};
  EXPECT_EQ(code(bad), StatusCode::kInvalidArgument);
}

TEST(FisherWeights, SumSquaresOfEachGroup) {
  const std::vector<float> gradients = {1, -2, 3, 0, 0, 0, 0.5, 2};  // two tokens, four channels
  std::vector<float> weights(4);
  ASSERT_TRUE(fisher_weights(gradients.data(), 2, 4, 2, weights).ok());
  EXPECT_EQ(weights, (std::vector<float>{5.0F, 9.0F, 0, 4.25F}));
}

// The square of each is below the smallest float, their sum is not.
TEST(FisherWeights, SquaresDoNotVanishBeforeTheyAreSummed) {
  const std::vector<float> gradients(8, 0x1p-75F);
  std::vector<float> weights(1);
  ASSERT_TRUE(fisher_weights(gradients.data(), 1, 8, 8, weights).ok());
  EXPECT_EQ(weights[0], 0x1p-147F);
}

TEST(FisherWeights, RefusesShapesThatDisagree) {
  const std::vector<float> gradients(8, 1.0F);
  std::vector<float> weights(4, -1.0F);
  for (const Status& status : {fisher_weights(gradients.data(), 2, 4, 3, weights),
                               fisher_weights(gradients.data(), 1, 4, 2, weights),
                               fisher_weights(gradients.data(), 2, 4, 0, weights)}) {
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(weights, std::vector<float>(4, -1.0F));
}

}  // namespace
}  // namespace cqkv
