// The order of KvCache's calls: one out of it is an error and changes nothing. What calls in order
// do is in cache_model_test.cpp.
#include "cache/kv_cache.h"

#include <array>
#include <vector>

#include <gtest/gtest.h>

#include "core/rng.h"
#include "support/codebooks.h"
#include "support/strict_parallel.h"

namespace cqkv {
namespace {

constexpr int kHeadDim = 16;
constexpr std::size_t kTokens = 10;

class KvCacheOrder : public ::testing::Test {
 protected:
  KvCacheOrder() {
    for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
      EXPECT_TRUE(cache.add({.kind = kind, .codebook = &codebook, .row_bytes = 2 * kHeadDim}).ok());
    }
    Rng rng(1);
    for (std::size_t i = 0; i < rows.size(); i++) {
      rows[i] = static_cast<float>(rng.normal());
    }
    for (std::size_t i = 0; i < kTokens; i++) {
      positions.push_back(static_cast<std::int32_t>(i));
      cells.push_back(i);
    }
    rope.n_dims = kHeadDim;
  }

  TokenRows token_rows() const {
    return {reinterpret_cast<const std::uint8_t*>(rows.data()), kHeadDim * sizeof(float)};
  }

  Status store_keys(const RopeParams* by) {
    return cache.store_keys(0, token_rows(), cells, by, parallel, workspace);
  }

  // One query of all ones; without a window attention needs no step.
  std::array<float, kHeadDim> attend() {
    std::array<float, kHeadDim> query;
    std::array<float, kHeadDim> out{};
    query.fill(1.0F);
    StreamAttention stream;
    stream.call.n_heads = stream.call.n_kv_heads = stream.call.n_queries = 1;
    stream.call.head_dim_k = stream.call.head_dim_v = kHeadDim;
    stream.call.n_cells = kTokens;
    stream.call.queries = reinterpret_cast<const std::uint8_t*>(query.data());
    stream.call.query_bytes = stream.call.query_head_bytes = sizeof(query);
    stream.call.out = reinterpret_cast<std::uint8_t*>(out.data());
    stream.call.out_bytes = stream.call.out_head_bytes = sizeof(out);
    const Status status = cache.attend(0, {&stream, 1}, parallel, workspace);
    EXPECT_TRUE(status.ok()) << status.message();
    return out;
  }

  TensorCodebook codebook = testing::random_mixed_tensor(4, {2}, kHeadDim, 1);
  KvCache cache{CacheOptions{.n_streams = 1, .cells_per_stream = 64, .window = {}, .pool = {}}};
  RopeParams rope;
  std::vector<float> rows = std::vector<float>(kTokens * kHeadDim);
  std::vector<std::int32_t> positions;
  std::vector<std::size_t> cells;
  testing::StrictParallelFor parallel;
  CacheWorkspace workspace;
};

// Keys stored without a rotation are not rotated when they are read, whatever was refused since.
TEST_F(KvCacheOrder, RefusedKeysLeaveTheRotationAlone) {
  ASSERT_TRUE(cache.plan({positions, cells}).ok());
  ASSERT_TRUE(store_keys(nullptr).ok());
  ASSERT_TRUE(cache.store_values(0, token_rows(), cells, parallel, workspace).ok());
  ASSERT_TRUE(cache.commit().ok());
  const auto want = attend();
  EXPECT_EQ(store_keys(&rope).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(attend(), want);
  ASSERT_TRUE(cache.plan({positions, cells}).ok());
  ASSERT_TRUE(store_keys(&rope).ok());
  ASSERT_TRUE(cache.commit().ok());
  const auto rotated = attend();
  EXPECT_NE(rotated, want);
  cells.pop_back();
  ASSERT_TRUE(cache.plan({std::span(positions).first(3), std::span(cells).first(3)}).ok());
  EXPECT_EQ(store_keys(&rope).code(), StatusCode::kInvalidArgument) << "too many tokens";
  cache.abandon();
  EXPECT_EQ(attend(), rotated);
}

}  // namespace
}  // namespace cqkv
