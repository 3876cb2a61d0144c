// Which level's integer kernels serve codes of how many bits. The choice of a level is in
// tests/isa.
#include "kernels/dispatch.h"

#include <gtest/gtest.h>

#include "cqkv/isa.h"

#include "isa/select.h"

namespace cqkv {
namespace {

// First in this program: nobody has forced a level yet. Says something on processors with AVX-512
// and without VBMI.
TEST(Dispatch, Avx512IsForThoseWhoAskForIt) {
  if (isa::is_forced() || isa::active_level() != isa::Level::kAvx512) {
    GTEST_SKIP() << "another level is in use: " << active_isa();
  }
  EXPECT_EQ(kernels::active().level, isa::Level::kAvx2);
  ASSERT_TRUE(force_isa("avx512").ok());
  EXPECT_EQ(kernels::active().level, isa::Level::kAvx512);
}

TEST(Dispatch, EveryLevelHasIntegerKernelsForAllByteCodes) {
  for (const std::string& name : supported_isas()) {
    ASSERT_TRUE(force_isa(name).ok());
    EXPECT_EQ(kernels::integer_kernels(kernels::active(), 8), &kernels::active()) << name;
    EXPECT_NE(kernels::integer_kernels(kernels::active(), 12), nullptr) << name;
  }
}

TEST(Dispatch, LongCodesGoToTheLevelThatTakesThem) {
  kernels::KernelTable narrow = kernels::kScalarTable;
  narrow.max_code_bits = 8;
  narrow.wide_codes = &kernels::kScalarTable;
  EXPECT_EQ(kernels::integer_kernels(narrow, 8), &narrow);
  EXPECT_EQ(kernels::integer_kernels(narrow, 9), &kernels::kScalarTable);
  EXPECT_EQ(kernels::integer_kernels(narrow, kernels::kScalarTable.max_code_bits + 1), nullptr);
  narrow.wide_codes = nullptr;
  EXPECT_EQ(kernels::integer_kernels(narrow, 9), nullptr);
}

}  // namespace
}  // namespace cqkv
