// llama.cpp's names of caches and weights.
#include "graph/names.h"

#include <gtest/gtest.h>

namespace cqkv {
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
  EXPECT_EQ(cache_text(*value), "values of layer 127");
  for (const char* name : {"cache_r_l0", "cache_s_l0", "cache_idx_k_l0", "cache_k_l", "cache_k_l1x",
                           "cache_k_l-1", "cache_k_l0 (view)", "blk.0.attn_k.weight", ""}) {
    EXPECT_FALSE(parse_cache_name(name)) << name;
  }
  EXPECT_TRUE(is_cache_like("cache_r_l0"));
  EXPECT_FALSE(is_cache_like("blk.0.attn_k.weight"));
}

// Codebooks in use were made with it.
TEST(Names, TheFingerprintsWeightStays) {
  EXPECT_EQ(fingerprint_weight(12), "blk.12.attn_norm.weight");
}

}  // namespace
}  // namespace cqkv
