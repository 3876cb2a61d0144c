// Reading a model's shape from its header, and telling codebooks of other models.
#include "codebook_file/kv_shape.h"

#include <functional>
#include <vector>

#include <gguf.h>
#include <gtest/gtest.h>

#include "support/codebooks.h"
#include "support/temp_folder.h"

namespace cqkv {
namespace {

using testing::random_codebook;
using testing::TempFolder;

class KvShapeTest : public ::testing::Test {
 protected:
  // A model header of 2 layers, 4 heads, 2 KV heads of 16, after `change`.
  Result<ModelKvShape> read(const std::function<void(gguf_context*)>& change = {}) const {
    gguf_context* header = gguf_init_empty();
    gguf_set_val_str(header, "general.architecture", "llama");
    gguf_set_val_str(header, "general.name", "Tiny");
    gguf_set_val_u32(header, "llama.block_count", 2);
    gguf_set_val_u32(header, "llama.embedding_length", 64);
    gguf_set_val_u32(header, "llama.attention.head_count", 4);
    gguf_set_val_u32(header, "llama.attention.head_count_kv", 2);
    if (change) {
      change(header);
    }
    const std::string path = folder.file("m.gguf");
    gguf_write_to_file(header, path.c_str(), true);
    gguf_free(header);
    return read_kv_shape(path);
  }

  TempFolder folder;
};

TEST_F(KvShapeTest, HeadsAndSizes) {
  const auto shape = read();
  ASSERT_TRUE(shape.ok()) << shape.status().message();
  EXPECT_EQ(shape->architecture, "llama");
  EXPECT_EQ(shape->name, "Tiny");
  ASSERT_EQ(shape->layers.size(), 2U);
  EXPECT_EQ(shape->layers[1].n_kv_heads, 2);
  EXPECT_EQ(shape->layers[1].k_head_dim, 16);
  EXPECT_EQ(shape->layers[1].v_head_dim, 16);
}

TEST_F(KvShapeTest, ExplicitLengthsAndHeadsByLayer) {
  const auto shape = read([](gguf_context* header) {
    const std::int32_t heads[2] = {0, 4};
    gguf_set_arr_data(header, "llama.attention.head_count_kv", GGUF_TYPE_INT32, heads, 2);
    gguf_set_val_u32(header, "llama.attention.key_length", 32);
    gguf_set_val_u32(header, "llama.attention.value_length", 24);
  });
  ASSERT_TRUE(shape.ok()) << shape.status().message();
  EXPECT_EQ(shape->layers[0].n_kv_heads, 0);
  EXPECT_EQ(shape->layers[1].n_kv_heads, 4);
  EXPECT_EQ(shape->layers[1].k_head_dim, 32);
  EXPECT_EQ(shape->layers[1].v_head_dim, 24);
}

TEST_F(KvShapeTest, NoKvHeadsMeansAllHeadsAndNoNameTheFile) {
  const auto shape = read([](gguf_context* header) {
    gguf_remove_key(header, "llama.attention.head_count_kv");
    gguf_remove_key(header, "general.name");
  });
  ASSERT_TRUE(shape.ok()) << shape.status().message();
  EXPECT_EQ(shape->layers[0].n_kv_heads, 4);
  EXPECT_EQ(shape->name, "m.gguf");
}

// As in qwen3next and qwen35: two layers of three have no attention.
TEST_F(KvShapeTest, LayersWithRecurrentStatesHaveNoCache) {
  const auto shape = read([](gguf_context* header) {
    gguf_set_val_u32(header, "llama.block_count", 7);
    gguf_set_val_u32(header, "llama.full_attention_interval", 3);
    gguf_set_val_u32(header, "llama.nextn_predict_layers", 1);
  });
  ASSERT_TRUE(shape.ok()) << shape.status().message();
  const int want[7] = {0, 0, 2, 0, 0, 2, 2};  // the last predicts a second token
  for (std::size_t il = 0; il < 7; il++) {
    EXPECT_EQ(shape->layers[il].n_kv_heads, want[il]) << il;
  }
}

TEST_F(KvShapeTest, NotAModel) {
  const std::vector<std::function<void(gguf_context*)>> changes = {
      [](gguf_context* h) { gguf_set_val_str(h, "general.type", "adapter"); },
      [](gguf_context* h) { gguf_set_val_u32(h, "general.architecture", 1); },
      [](gguf_context* h) { gguf_remove_key(h, "llama.block_count"); },
      [](gguf_context* h) { gguf_set_val_u32(h, "llama.block_count", 0xFFFFFFFFU); },
      [](gguf_context* h) { gguf_set_val_u32(h, "llama.block_count", 0); },
      [](gguf_context* h) { gguf_set_val_str(h, "llama.full_attention_interval", "3"); },
      [](gguf_context* h) { gguf_set_val_str(h, "llama.attention.head_count", "4"); },
      [](gguf_context* h) { gguf_set_val_u32(h, "llama.attention.head_count_kv", 1U << 31U); },
      [](gguf_context* h) { gguf_set_val_f32(h, "llama.embedding_length", 64); },
      [](gguf_context* h) { gguf_set_val_u32(h, "llama.embedding_length", 0x7FFFFFFFU); }};
  for (std::size_t i = 0; i < changes.size(); i++) {
    const auto shape = read(changes[i]);
    EXPECT_EQ(shape.status().code(), StatusCode::kCorrupt) << i;
  }
}

TEST_F(KvShapeTest, CodebookOfThisModel) {
  const auto shape = read();
  ASSERT_TRUE(shape.ok());
  EXPECT_TRUE(check_fits(random_codebook(2, {4, 4}, {8, 8}, 2, 16), "c.gguf", *shape).ok());
  EXPECT_TRUE(check_fits(random_codebook(2, {}, {8, 8}, 2, 16), "c.gguf", *shape).ok());
}

TEST_F(KvShapeTest, CodebookOfAnotherModelNamesBoth) {
  const auto shape = read();
  ASSERT_TRUE(shape.ok());
  Codebook other_architecture = random_codebook(2, {4, 4}, {4, 4}, 2, 16);
  other_architecture.origin.architecture = "qwen2";
  const std::vector<Codebook> wrong = {
      other_architecture, random_codebook(3, {4, 4}, {4, 4}, 2, 16),
      random_codebook(2, {4, 4}, {4, 4}, 1, 16), random_codebook(2, {4, 4}, {4, 4}, 2, 32)};
  for (const Codebook& codebook : wrong) {
    const Status status = check_fits(codebook, "c.gguf", *shape);
    EXPECT_EQ(status.code(), StatusCode::kMismatch);
    for (const char* word : {"'a model'", "'Tiny'", "c.gguf", "cqkv calibrate"}) {
      EXPECT_NE(status.message().find(word), std::string::npos) << status.message();
    }
  }
}

}  // namespace
}  // namespace cqkv
