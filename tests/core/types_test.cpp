// CodecSpec: names and legal values.
#include "cqkv/types.h"

#include <gtest/gtest.h>

namespace cqkv {
namespace {

TEST(CodecSpec, EveryLegalOneRoundTrips) {
  for (const int group_dim : {1, 2, 4, 8, 16}) {
    for (int bits = 1; bits <= kMaxCodeBits; bits++) {
      const CodecSpec spec = {group_dim, bits};
      const auto parsed = CodecSpec::parse(spec.name());
      ASSERT_TRUE(parsed.ok()) << spec.name();
      EXPECT_EQ(*parsed, spec);
      EXPECT_TRUE(spec.check(group_dim * 5).ok());
      EXPECT_EQ(spec.n_centroids(), 1 << bits);
      EXPECT_EQ(spec.bits_per_channel(), static_cast<double>(bits) / group_dim);
    }
  }
}

TEST(CodecSpec, ExactRoundTrips) {
  const auto parsed = CodecSpec::parse("exact");
  ASSERT_TRUE(parsed.ok());
  EXPECT_TRUE(parsed->exact());
  EXPECT_EQ(parsed->name(), "exact");
  EXPECT_EQ(parsed->bits_per_channel(), 16.0);
  EXPECT_TRUE(parsed->check(80).ok());
}

TEST(CodecSpec, RefusesEverythingElse) {
  for (const char* text : {"",
                           "8",
                           "8c",
                           "8c8",
                           "c8b",
                           "8c8b ",
                           " 8c8b",
                           "8c8bb",
                           "3c8b",
                           "128c8b",
                           "0c8b",
                           "8c0b",
                           "8c13b",
                           "-8c8b",
                           "8c-8b",
                           "8C8B",
                           "8c8b8c8b",
                           "99999999999c8b",
                           "8c99999999999b",
                           "Exact"}) {
    const auto parsed = CodecSpec::parse(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_EQ(parsed.status().code(), StatusCode::kInvalidArgument);
    EXPECT_NE(parsed.status().message().find("8c8b"), std::string::npos) << "names a legal one";
  }
}

TEST(CodecSpec, CheckNamesWhatIsWrong) {
  EXPECT_FALSE((CodecSpec{8, 8}.check(0).ok()));
  EXPECT_FALSE((CodecSpec{8, 8}.check(-8).ok()));
  EXPECT_FALSE((CodecSpec{8, 8}.check(100).ok()));
  EXPECT_FALSE((CodecSpec{3, 8}.check(96).ok()));
  EXPECT_FALSE((CodecSpec{8, 13}.check(64).ok()));
  EXPECT_NE((CodecSpec{16, 8}.check(24).message().find("24")), std::string::npos);
}

TEST(KvKind, HasNames) {
  EXPECT_EQ(kv_kind_name(KvKind::kKey), "key");
  EXPECT_EQ(kv_kind_name(KvKind::kValue), "value");
}

}  // namespace
}  // namespace cqkv
