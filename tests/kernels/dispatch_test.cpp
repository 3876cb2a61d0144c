// Which level's integer kernels serve codes of how many bits. The choice of a level is in
// tests/isa.
#include "kernels/dispatch.h"

#include <gtest/gtest.h>

#include "cqkv/isa.h"

namespace cqkv {
namespace {

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
