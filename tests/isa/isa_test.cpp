// The ranked list of levels, the choice of tables by it, and forcing a level. Processors
// that this machine is not are sets of features here. The environment variable is in
// isa_variable_test.cpp, the dense products' tables in tests/model_pass/dense_test.cpp.
#include "cqkv/isa.h"

#include <algorithm>
#include <set>

#include <gtest/gtest.h>

#include "codebook/kmeans.h"
#include "codebook/kmeans_kernels.h"
#include "isa/select.h"
#include "isa/table_walk.h"
#include "kernels/dispatch.h"

namespace cqkv::isa {
namespace {

constexpr Features kHaswell = kHasAvx2 | kHasFma | kHasF16c;
constexpr Features kSkylakeX = kHaswell | kHasAvx512f | kHasAvx512bw | kHasAvx512dq | kHasAvx512vl;
constexpr Features kZen5 = kSkylakeX | kHasAvx512vbmi | kHasAvx512vnni;

Level best(Features features) {
  return levels_of(features).front();
}

TEST(IsaLevels, ProcessorsGetTheirLevel) {
  EXPECT_EQ(best(0), Level::kScalar);
  EXPECT_EQ(best(kHaswell), Level::kAvx2);
  EXPECT_EQ(best(kSkylakeX), Level::kAvx512);
  EXPECT_EQ(best(kZen5), Level::kAvx512Vbmi);
  EXPECT_EQ(best(kHasNeon), Level::kNeon);
  EXPECT_EQ(best(kHasNeon | kHasDotprod), Level::kNeonDotprod);
}

// A virtual machine may hide any feature: a level with a part missing must not be taken.
TEST(IsaLevels, EveryFeatureOfALevelIsNeeded) {
  for (const Level level : all_levels()) {
    const Features needed = needed_features(level);
    EXPECT_EQ(best(needed), level) << level_name(level);
    for (Features bit = 1; bit != 0; bit <<= 1U) {
      if ((needed & bit) != 0) {
        const auto levels = levels_of(needed & ~bit);
        EXPECT_EQ(std::count(levels.begin(), levels.end(), level), 0) << level_name(level);
      }
    }
  }
}

TEST(IsaLevels, ListIsRankedAndNamed) {
  std::set<std::string_view> names;
  const auto levels = all_levels();
  for (std::size_t i = 0; i < levels.size(); i++) {
    names.insert(level_name(levels[i]));
    const auto below = std::find(levels.begin(), levels.end(), level_below(levels[i]));
    EXPECT_TRUE(below > levels.begin() + static_cast<std::ptrdiff_t>(i) ||
                levels[i] == Level::kScalar)
        << level_name(levels[i]);
    EXPECT_EQ(needed_features(levels[i]) & needed_features(*below), needed_features(*below));
  }
  EXPECT_EQ(names.size(), levels.size());
  EXPECT_EQ(levels.back(), Level::kScalar);
}

struct FakeTable {
  Level level;
};

// Also the levels of other machines: all tables exist here.
TEST(IsaTables, BestAtOrBelowTheLevel) {
  constexpr FakeTable kNeonFake{Level::kNeon};
  constexpr FakeTable kAvx2Fake{Level::kAvx2};
  constexpr FakeTable kScalarFake{Level::kScalar};
  const FakeTable* const tables[] = {&kNeonFake, &kAvx2Fake, &kScalarFake};
  const auto chosen = [&](Level level) { return best_of<FakeTable>(tables, level).level; };
  EXPECT_EQ(chosen(Level::kAvx512Vbmi), Level::kAvx2);
  EXPECT_EQ(chosen(Level::kAvx512), Level::kAvx2);
  EXPECT_EQ(chosen(Level::kAvx2), Level::kAvx2);
  EXPECT_EQ(chosen(Level::kNeonDotprod), Level::kNeon);
  EXPECT_EQ(chosen(Level::kNeon), Level::kNeon);
  EXPECT_EQ(chosen(Level::kScalar), Level::kScalar);
}

// At avx512_vbmi k-means once ran scalar code, having no table of that name.
TEST(IsaTables, NoLevelIsServedWorseThanTheOneBelow) {
  testing::walk_levels(kernels::table_for, "attention");
  testing::walk_levels(kmeans::kernels_for, "k-means");
}

TEST(IsaTables, NewestX86RunsTheBestCodeOfEveryKind) {
  if (!compiled(Level::kAvx512Vbmi)) {
    GTEST_SKIP() << "not a build for x86";
  }
  EXPECT_EQ(kernels::table_for(best(kZen5)).level, Level::kAvx512Vbmi);
  EXPECT_EQ(kmeans::kernels_for(best(kZen5)).level, Level::kAvx512);
  EXPECT_EQ(kmeans::kernels_for(best(kHaswell)).level, Level::kAvx2);
}

TEST(IsaForce, ScalarIsAlwaysLast) {
  ASSERT_FALSE(supported_isas().empty());
  EXPECT_EQ(supported_isas().back(), "scalar");
}

TEST(IsaForce, ForcedLevelIsTheActiveOneOfEveryKind) {
  const std::string before = active_isa();
  for (const Level level : usable_levels()) {
    ASSERT_TRUE(force_isa(level_name(level)).ok());
    EXPECT_EQ(active_isa(), level_name(level));
    EXPECT_EQ(&kernels::active(), &kernels::table_for(level));
    EXPECT_EQ(&kmeans::active_kernels(), &kmeans::kernels_for(level));
  }
  ASSERT_TRUE(force_isa(before).ok());
}

TEST(IsaForce, UnknownLevelIsRefusedAndChangesNothing) {
  ASSERT_TRUE(force_isa("scalar").ok());
  const Status status = force_isa("mmx");
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_NE(status.message().find("mmx"), std::string::npos);
  EXPECT_NE(status.message().find("scalar"), std::string::npos);
  EXPECT_EQ(active_isa(), "scalar");
}

}  // namespace
}  // namespace cqkv::isa
