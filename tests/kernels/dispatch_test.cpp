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
