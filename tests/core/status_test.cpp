// Status and Result.
#include "cqkv/status.h"

#include <memory>

#include <gtest/gtest.h>

namespace cqkv {
namespace {

TEST(Status, DefaultIsOk) {
  const Status status;
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(status.code(), StatusCode::kOk);
  EXPECT_TRUE(status.message().empty());
}

TEST(Status, KeepsCodeAndMessage) {
  const Status status = invalid_argument("got 3, want 4");
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "got 3, want 4");
  EXPECT_EQ(unsupported("").code(), StatusCode::kUnsupported);
  EXPECT_EQ(corrupt("").code(), StatusCode::kCorrupt);
  EXPECT_EQ(io_error("").code(), StatusCode::kIoError);
}

TEST(Status, EveryCodeHasAName) {
  for (int code = 0; code <= static_cast<int>(StatusCode::kInternal); code++) {
    EXPECT_FALSE(status_code_name(static_cast<StatusCode>(code)).empty()) << code;
  }
}

TEST(Result, HoldsAValueThatOnlyMoves) {
  Result<std::unique_ptr<int>> result(std::make_unique<int>(5));
  ASSERT_TRUE(result.ok());
  const std::unique_ptr<int> value = std::move(result).value();
  EXPECT_EQ(*value, 5);
}

TEST(Result, HoldsAFailure) {
  const Result<int> result(io_error("no such file"));
  EXPECT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), StatusCode::kIoError);
}

TEST(Result, OkStatusIsAFault) {
  const Result<int> result{Status()};
  EXPECT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), StatusCode::kInternal);
}

Status fail_if(bool fail) {
  return fail ? corrupt("inner") : Status();
}

Status outer(bool fail) {
  CQKV_RETURN_IF_ERROR(fail_if(fail));
  return unsupported("reached the end");
}

TEST(Status, MacroReturnsFailuresOnly) {
  EXPECT_EQ(outer(true).message(), "inner");
  EXPECT_EQ(outer(false).message(), "reached the end");
}

}  // namespace
}  // namespace cqkv
