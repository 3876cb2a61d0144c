// The check of the host's version of ggml.
#include "device/version.h"

#include <ggml.h>
#include <gtest/gtest.h>

namespace cqkv::device {
namespace {

TEST(Version, OnlyTheOneCompiledAgainst) {
  EXPECT_TRUE(check_ggml_version(ggml_version()).ok());
  const Status other = check_ggml_version("0.1.2");
  EXPECT_EQ(other.code(), StatusCode::kMismatch);
  EXPECT_NE(other.message().find("0.1.2"), std::string::npos);
  EXPECT_NE(other.message().find(ggml_version()), std::string::npos);
  EXPECT_FALSE(check_ggml_version(nullptr).ok());
}

}  // namespace
}  // namespace cqkv::device
