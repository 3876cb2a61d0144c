// What KeySums takes and refuses, and how it lays out what attention reads. What attention
// makes of it is in attention_test.cpp.
#include "codec/key_sums.h"

#include <algorithm>

#include <gtest/gtest.h>

#include "codec/code_blocks.h"
#include "core/rng.h"
#include "kernels/dispatch.h"

namespace cqkv {
namespace {

constexpr int kValueDim = 5;

TensorCodebook random_keys(CodecSpec spec) {
  Rng rng(1);
  std::vector<float> centroids(static_cast<std::size_t>(2) * 32 * spec.n_centroids());
  for (float& value : centroids) {
    value = static_cast<float>(rng.normal());
  }
  return TensorCodebook::create(spec, 2, 32, centroids).value();
}

// Element i is i.
std::vector<float> counting(std::size_t n) {
  std::vector<float> values(n);
  for (std::size_t i = 0; i < n; i++) {
    values[i] = static_cast<float>(i);
  }
  return values;
}

TEST(KeySums, TakesTheChosenGroups) {
  const TensorCodebook keys = random_keys({8, 6});
  const std::vector<int> groups = {1, 4, 7};  // of the first head, and two of the other
  const auto sums =
      KeySums::create(keys, groups, kValueDim, counting(2 * kValueDim * 24), kernels::active())
          .value();
  EXPECT_EQ(sums.n_channels(), 24);
  EXPECT_EQ(sums.n_kv_heads(), 2);
  EXPECT_EQ(sums.groups(), groups);
  for (std::size_t i = 0; i < groups.size(); i++) {
    const std::uint16_t* want = keys.group(groups[i] / 4, groups[i] % 4);
    const std::uint16_t* got = sums.centroids().group(0, static_cast<int>(i));
    EXPECT_TRUE(std::equal(want, want + 64 * 8, got)) << "group " << groups[i];
  }
  ASSERT_NE(sums.tables(), nullptr);
  EXPECT_EQ(sums.tables()->order(),
            ByteTables::order_for(keys.spec().code_bits(), kernels::active()));
}

TEST(KeySums, TransposesAndPadsMatrices) {
  const auto sums = KeySums::create(random_keys({8, 6}), {0, 5}, kValueDim,
                                    counting(2 * kValueDim * 16), kernels::active())
                        .value();
  ASSERT_EQ(sums.matrix_stride(), 16U);
  for (int head = 0; head < 2; head++) {
    for (int c = 0; c < kBlockCells; c++) {
      for (int d = 0; d < 16; d++) {
        const bool inside = c < 16 && d < kValueDim;
        EXPECT_EQ(sums.matrix(head)[c * 16 + d], inside ? (head * kValueDim + d) * 16 + c : 0)
            << "head " << head << ", channel " << c << ", value channel " << d;
      }
    }
  }
}

TEST(KeySums, CodesFinerThanBytesHaveNoTables) {
  const auto sums = KeySums::create(random_keys({1, 12}), {0}, kValueDim, counting(2 * kValueDim),
                                    kernels::active());
  ASSERT_TRUE(sums.ok());
  EXPECT_EQ(sums->tables(), nullptr);
}

TEST(KeySums, RefusesWhatIsNone) {
  const TensorCodebook keys = random_keys({8, 6});
  const auto refused = [&](std::vector<int> groups, int head_dim_v, std::size_t n_elements) {
    const auto sums = KeySums::create(keys, std::move(groups), head_dim_v, counting(n_elements),
                                      kernels::active());
    return sums.status().code() == StatusCode::kInvalidArgument;
  };
  EXPECT_FALSE(refused({0, 7}, kValueDim, 160));
  EXPECT_TRUE(refused({}, kValueDim, 0));
  EXPECT_TRUE(refused({0, 8}, kValueDim, 160)) << "eight groups: 0 to 7";
  EXPECT_TRUE(refused({-1, 7}, kValueDim, 160));
  EXPECT_TRUE(refused({7, 0}, kValueDim, 160));
  EXPECT_TRUE(refused({7, 7}, kValueDim, 160));
  EXPECT_TRUE(refused({0, 7}, kValueDim, 159));
  EXPECT_TRUE(refused({0, 7}, 0, 0));
  EXPECT_TRUE(refused({0, 7}, -1, 0));
}

}  // namespace
}  // namespace cqkv
