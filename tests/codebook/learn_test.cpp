// Learning a tensor's codebook: groups are learned independently of threads and of each
// other, errors name the place. What k-means itself promises is in kmeans_test.cpp.
#include "codebook/learn.h"

#include <cmath>
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
  Learn() : rows_(kTokens * kStride), weights_(kTokens * kChannels / 8) {
    Rng rng(11);
    for (float& value : rows_) {
      value = static_cast<float>(rng.normal());
    }
    for (float& value : weights_) {
      value = static_cast<float>(1e-12 * std::exp(rng.normal()));
    }
    input_.spec = {8, 5};
    input_.n_kv_heads = kHeads;
    input_.head_dim = kHeadDim;
    input_.rows = rows_.data();
    input_.n_tokens = kTokens;
    input_.row_stride = kStride;
    input_.weights = weights_;
  }

  Result<LearnedTensor> learn(int n_threads) {
    ThreadParallelFor parallel(n_threads);
    return learn_tensor_codebook(input_, options_, parallel);
  }

  std::vector<float> rows_;
  std::vector<float> weights_;
  LearnInput input_;
  LearnOptions options_;
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

}  // namespace
}  // namespace cqkv
