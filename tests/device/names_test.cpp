// llama.cpp's names of caches, and the version check.
#include "device/names.h"

#include <gtest/gtest.h>

#include "device/version.h"

namespace cqkv::device {
namespace {

TEST(Names, AttentionCachesAreExactNames) {
  const auto key = parse_cache_name("cache_k_l0");
  ASSERT_TRUE(key);
  EXPECT_EQ(key->kind, KvKind::kKey);
  EXPECT_EQ(key->layer, 0);
  const auto value = parse_cache_name("cache_v_l127");
  ASSERT_TRUE(value);
  EXPECT_EQ(value->kind, KvKind::kValue);
  EXPECT_EQ(value->layer, 127);
  for (const char* name : {"cache_r_l0", "cache_s_l0", "cache_idx_k_l0", "cache_k_l", "cache_k_l1x",
                           "cache_k_l-1", "cache_k_l0 (view)", "blk.0.attn_k.weight", ""}) {
    EXPECT_FALSE(parse_cache_name(name)) << name;
  }
  EXPECT_TRUE(is_cache_like("cache_r_l0"));
  EXPECT_FALSE(is_cache_like("blk.0.attn_k.weight"));
}

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
