// CQKV_FORCE_ISA: run by ctest once for each value of the variable, in its own process
// because the variable is read once.
#include <algorithm>
#include <cstdlib>

#include <gtest/gtest.h>

#include "cqkv/isa.h"

namespace cqkv {
namespace {

std::string forced_name() {
  const char* name = std::getenv("CQKV_FORCE_ISA");
  return name == nullptr ? "" : name;
}

// Without the variable: the best level. With a usable one: that. With another: the
// best one, and an error for the program to report.
TEST(IsaVariable, IsObeyedOrReported) {
  const std::string forced = forced_name();
  const auto known = supported_isas();
  if (forced.empty() || std::find(known.begin(), known.end(), forced) == known.end()) {
    EXPECT_EQ(active_isa(), known.front());
    EXPECT_EQ(isa_status().ok(), forced.empty());
  } else {
    EXPECT_EQ(active_isa(), forced);
    EXPECT_TRUE(isa_status().ok());
  }
}

}  // namespace
}  // namespace cqkv
