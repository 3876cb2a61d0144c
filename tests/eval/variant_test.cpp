// The names of caches on the command line.
#include "eval/variant.h"

#include <gtest/gtest.h>

namespace cqkv::eval {
namespace {

TEST(Variant, Names) {
  const auto path = Variant::parse("folder/a.gguf");
  ASSERT_TRUE(path.ok());
  EXPECT_EQ(path->kind, CacheKind::kCoded);
  EXPECT_EQ(path->codebook_path, "folder/a.gguf");
  EXPECT_TRUE(path->uses_device());
  const auto none = Variant::parse("none");
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(none->kind, CacheKind::kUncoded);
  EXPECT_EQ(none->codebook_path, "");
  const auto stock = Variant::parse("stock-nofa");
  ASSERT_TRUE(stock.ok());
  EXPECT_EQ(stock->kind, CacheKind::kStock);
  EXPECT_FALSE(stock->flash_attention);
  EXPECT_EQ(stock->cache_type, GGML_TYPE_F16);
  const auto quantized = Variant::parse("stock-q4_0@ub:64");
  ASSERT_TRUE(quantized.ok());
  EXPECT_EQ(quantized->kind, CacheKind::kStock);
  EXPECT_EQ(quantized->cache_type, GGML_TYPE_Q4_0);
  EXPECT_TRUE(quantized->flash_attention);
  EXPECT_EQ(quantized->n_ubatch, 64);
  EXPECT_FALSE(Variant::parse("stock-q3_K").ok());
}

TEST(Variant, MicroBatches) {
  EXPECT_EQ(Variant::parse("stock-ub:32")->n_ubatch, 32);
  const auto window = Variant::parse("x@y/a.gguf@window:0@ub:32@sinks:7");
  ASSERT_TRUE(window.ok()) << window.status().message();
  EXPECT_EQ(window->codebook_path, "x@y/a.gguf");
  EXPECT_EQ(window->window.window, 0);
  EXPECT_EQ(window->window.sinks, 7);
  EXPECT_EQ(Variant::parse("a.gguf@spare:9")->window.spare, 9);
  EXPECT_EQ(window->n_ubatch, 32);
  EXPECT_FALSE(Variant::parse("a.gguf")->window.window.has_value());
  EXPECT_FALSE(Variant::parse("none@window:3").ok());
  const auto coded = Variant::parse("a.gguf@ub:2048");
  ASSERT_TRUE(coded.ok());
  EXPECT_EQ(coded->codebook_path, "a.gguf");
  EXPECT_EQ(coded->n_ubatch, 2048);
  for (const char* bad : {"stock-ub:", "stock-ub:x", "stock-ub:0", "none@ub:-1", "a@ub:3x",
                          "stock-ub:99999999999", "a@window:1048577", "a@bytes:2"}) {
    EXPECT_EQ(Variant::parse(bad).status().code(), StatusCode::kInvalidArgument) << bad;
  }
}

TEST(Variant, UnknownOptionsAreNoPaths) {
  const Status option = Variant::parse("a.gguf@ub:2@foo:1").status();
  EXPECT_EQ(option.code(), StatusCode::kInvalidArgument);
  for (const char* part : {"'@foo'", "@ub:N", "@window:N", "@sinks:N", "@bytes:0"}) {
    EXPECT_NE(option.message().find(part), std::string::npos) << option.message();
  }
  for (const char* word : {"stock-fa", "stocks", "stock-ub32"}) {
    const Status status = Variant::parse(word).status();
    EXPECT_NE(status.message().find("stock-nofa"), std::string::npos) << status.message();
  }
  for (const char* path : {"model@v2.gguf", "stock.gguf", "stock-models/a.gguf", "a@b:c/d.gguf"}) {
    const auto variant = Variant::parse(path);
    ASSERT_TRUE(variant.ok()) << variant.status().message();
    EXPECT_EQ(variant->codebook_path, path);
  }
}

}  // namespace
}  // namespace cqkv::eval
