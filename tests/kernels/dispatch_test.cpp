// Forcing a level. The environment variable is in dispatch_variable_test.cpp.
#include "kernels/dispatch.h"

#include <gtest/gtest.h>

#include "cqkv/isa.h"

namespace cqkv {
namespace {

TEST(Dispatch, ScalarIsAlwaysLast) {
  ASSERT_FALSE(supported_isas().empty());
  EXPECT_EQ(supported_isas().back(), "scalar");
}

TEST(Dispatch, ForcedLevelIsTheActiveOne) {
  for (const std::string& name : supported_isas()) {
    ASSERT_TRUE(force_isa(name).ok());
    EXPECT_EQ(active_isa(), name);
    EXPECT_EQ(kernels::active().name, name);
  }
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

TEST(Dispatch, UnknownLevelIsRefusedAndChangesNothing) {
  ASSERT_TRUE(force_isa("scalar").ok());
  const Status status = force_isa("mmx");
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_NE(status.message().find("mmx"), std::string::npos);
  EXPECT_NE(status.message().find("scalar"), std::string::npos);
  EXPECT_EQ(active_isa(), "scalar");
}

}  // namespace
}  // namespace cqkv
