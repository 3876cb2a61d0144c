// How calls are cut into tasks. That results do not depend on it is tested in
// attention_invariance_test.cpp.
#include <algorithm>

#include <gtest/gtest.h>

#include "attention/plan/plan.h"
#include "core/half.h"

namespace cqkv {
namespace {

// Sequences of so many tokens, one query each, one behind the other in the cells.
class PlanTest : public ::testing::Test {
 protected:
  Plan plan(const std::vector<int>& n_tokens, int n_threads, int n_kv_heads = 2) {
    std::size_t n_cells = 0;
    positions_.clear();
    for (const int n : n_tokens) {
      n_cells += static_cast<std::size_t>(n);
      for (int t = 0; t < n; t++) {
        positions_.push_back(t);
      }
    }
    mask_.assign(n_cells * n_tokens.size(), kHalfMinusInfinity);
    std::size_t first = 0;
    for (std::size_t i = 0; i < n_tokens.size(); i++) {
      std::fill_n(mask_.begin() + static_cast<std::ptrdiff_t>(i * n_cells + first), n_tokens[i],
                  std::uint16_t{0});
      first += static_cast<std::size_t>(n_tokens[i]);
    }
    call_.n_heads = call_.n_kv_heads = n_kv_heads;
    call_.head_dim_k = call_.head_dim_v = 64;
    call_.n_queries = static_cast<int>(n_tokens.size());
    call_.n_cells = n_cells;
    call_.positions = positions_.data();
    call_.mask = reinterpret_cast<const std::uint8_t*>(mask_.data());
    call_.mask_bytes = n_cells * sizeof(std::uint16_t);
    views_.build(call_);
    return {call_, views_, n_threads};
  }

  std::vector<std::int32_t> positions_;
  std::vector<std::uint16_t> mask_;
  AttentionCall call_;
  SequenceViews views_;
};

TEST_F(PlanTest, OneThreadNeedsNoSplit) {
  EXPECT_FALSE(plan({4096}, 1).split_ranges);
  EXPECT_FALSE(plan({4096, 100}, 1).split_ranges);
}

TEST_F(PlanTest, OneSequenceIsSplit) {
  const Plan split = plan({4096}, 4);
  EXPECT_TRUE(split.split_ranges);
  EXPECT_EQ(split.n_slices, 8);
  EXPECT_GE(split.n_tasks(), 12);
  EXPECT_FALSE(plan({500}, 4).split_ranges) << "a single range";
}

TEST_F(PlanTest, AsManyTilesAsTasksNeedNoSplit) {
  const Plan whole = plan(std::vector<int>(12, 1024), 4);
  EXPECT_FALSE(whole.split_ranges);
  EXPECT_EQ(whole.n_tiles(), 12);
  EXPECT_TRUE(plan(std::vector<int>(11, 1024), 4).split_ranges);
}

TEST_F(PlanTest, ALongSequenceBesideShortOnesIsSplit) {
  std::vector<int> n_tokens(12, 500);
  n_tokens[5] = 8192;
  const Plan split = plan(n_tokens, 4);
  EXPECT_TRUE(split.split_ranges);
  EXPECT_EQ(split.n_slices, 11 + 16);
  EXPECT_GE(split.n_tasks(), 27);
}

TEST_F(PlanTest, FewQueriesAreCutByKvHeads) {
  const Plan cut = plan({100}, 4, 8);
  EXPECT_EQ(cut.n_kv_groups, 8);
  EXPECT_EQ(cut.kv_per_task, 1);
}

}  // namespace
}  // namespace cqkv
