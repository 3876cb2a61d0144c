// Bytes and bits counted by hand for SmolLM2's shape (30 layers, 3 KV heads of 64).
#include "eval/cache_size.h"

#include <gtest/gtest.h>

#include "support/codebooks.h"

namespace cqkv::eval {
namespace {

ModelKvShape model_of(int n_layers, int n_kv_heads, int head_dim) {
  ModelKvShape model;
  model.layers.assign(static_cast<std::size_t>(n_layers), {n_kv_heads, head_dim, head_dim});
  return model;
}

TEST(CacheSize, OneBit) {
  const auto codebook = testing::random_codebook(30, {8, 8}, {8, 8}, 3, 64);
  const CacheSize size = coded_cache_size(codebook, model_of(30, 3, 64), 2048, {});
  EXPECT_EQ(size.n_channels, 30U * 2 * 192);
  EXPECT_EQ(size.f16_bytes, 2048U * 11520 * 2);
  EXPECT_EQ(size.code_bytes, size.f16_bytes / 16);
  EXPECT_EQ(size.exact_bytes, 0U);
  EXPECT_EQ(size.position_bytes, 2048U * 4);
  EXPECT_EQ(size.codebook_bytes, 11520U * 256 * 2);
  EXPECT_DOUBLE_EQ(size.bits_codes, 1.0);
  // 1 bit + 32 bits of position over 11520 channels + centroids of 256 * 16 bits over 2048 tokens.
  EXPECT_NEAR(size.bits_all_in, 1.0 + 32.0 / 11520 + 4096.0 / 2048, 1e-12);
}

TEST(CacheSize, PartOfABlockCostsAWholeOne) {
  const auto codebook = testing::random_codebook(1, {8, 8}, {8, 8}, 1, 64);
  EXPECT_EQ(coded_cache_size(codebook, model_of(1, 1, 64), 65, {}).code_bytes, 2U * 2 * 64 * 8);
}

TEST(CacheSize, ExactSidesAndLayersCountAsSixteenBits) {
  auto codebook = testing::random_codebook(2, {4, 8}, {}, 1, 64);
  CacheSize size = coded_cache_size(codebook, model_of(2, 1, 64), 64, {});
  EXPECT_EQ(size.exact_bytes, 2U * 64 * 64 * 2);
  EXPECT_DOUBLE_EQ(size.bits_codes, (2.0 + 16.0) / 2);
  codebook.layers[0] = LayerCodebook{};
  size = coded_cache_size(codebook, model_of(2, 1, 64), 64, {});
  EXPECT_DOUBLE_EQ(size.bits_codes, (16.0 + 16.0 + 2.0 + 16.0) / 4);
}

TEST(CacheSize, LayersWithoutACacheCostNothing) {
  auto model = model_of(2, 1, 64);
  model.layers[1].n_kv_heads = 0;
  auto codebook = testing::random_codebook(2, {8, 8}, {8, 8}, 1, 64);
  codebook.layers[1] = LayerCodebook{};
  const CacheSize size = coded_cache_size(codebook, model, 64, {});
  EXPECT_DOUBLE_EQ(size.bits_codes, 1.0);
  EXPECT_EQ(size.exact_bytes, 0U);
}

// Blocks of 32 numbers with a 16-bit scale.
TEST(CacheSize, OfQuantizedStockCaches) {
  const CacheSize q8 = plain_cache_size(model_of(30, 3, 64), 2048, GGML_TYPE_Q8_0);
  EXPECT_DOUBLE_EQ(q8.bits_codes, 8.5);
  EXPECT_EQ(q8.cache_bytes(), q8.f16_bytes / 64 * 34);
  const CacheSize q4 = plain_cache_size(model_of(30, 3, 64), 2048, GGML_TYPE_Q4_0);
  EXPECT_DOUBLE_EQ(q4.bits_all_in, 4.5);
  EXPECT_EQ(plain_cache_size(model_of(30, 3, 64), 2048).cache_bytes(), q4.f16_bytes);
}

// One sequence's window: (128 + 16 + 4) rows a tensor of a byte a channel and a scale for
// 32, each tensor's part aligned to 64, and the table.
TEST(CacheSize, WindowCounts) {
  const auto codebook = testing::random_codebook(30, {8, 8}, {8, 8}, 3, 64);
  const ModelKvShape model = model_of(30, 3, 64);
  const WindowSpec window{128, 4, 0};
  const CacheSize size = coded_cache_size(codebook, model, 2048, window);
  const std::uint64_t pool = (148U * (192 + 24) + 63) / 64 * 64;
  EXPECT_EQ(size.window_bytes, 60 * pool + ExactWindow::table_bytes(2048, 148));
  EXPECT_EQ(size.cache_bytes(),
            coded_cache_size(codebook, model, 2048, {}).cache_bytes() + size.window_bytes);
  EXPECT_GT(size.bits_all_in, coded_cache_size(codebook, model, 2048, {}).bits_all_in);
  EXPECT_EQ(size.spare_bytes, 0U);
  // 2048 * 24 / 4 / 216 = 56 rows weigh a quarter of the codes; 16 of them count as the window's.
  const CacheSize usual = coded_cache_size(codebook, model, 2048, {128, 4});
  EXPECT_EQ(usual.spare_bytes, 60U * 40 * 216);
  EXPECT_LE(usual.spare_bytes + 60 * 16 * 216, usual.code_bytes / 4);
  EXPECT_GT(usual.bits_all_in, size.bits_all_in);
  // A context shorter than the window has no more rows than cells.
  EXPECT_EQ(coded_cache_size(codebook, model, 64, window).window_bytes,
            60 * (64U * 216) + ExactWindow::table_bytes(64, 64));
}

}  // namespace
}  // namespace cqkv::eval
