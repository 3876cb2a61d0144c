// What ModelFile and GgufFile refuse, and how they say it.
#include "model_pass/model_file.h"

#include <cmath>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

#include "model_pass/tiny_model.h"

namespace cqkv {
namespace {

using testing::TinyModel;

class ModelFileTest : public ::testing::Test {
 protected:
  ModelFileTest() {
    ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  }

  static void expect_error(const TinyModel& tiny, StatusCode code, const std::string& part) {
    expect_error(tiny.write("model.gguf"), code, part);
  }

  static void expect_error(const std::string& path, StatusCode code, const std::string& part) {
    const auto model = ModelFile::load(path);
    ASSERT_FALSE(model.ok());
    EXPECT_EQ(model.status().code(), code) << model.status().message();
    EXPECT_NE(model.status().message().find(part), std::string::npos) << model.status().message();
  }
};

TEST_F(ModelFileTest, ReadsShapes) {
  const auto model = ModelFile::load(TinyModel().write("model.gguf"));
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_EQ(model->shape.n_layers, 2U);
  EXPECT_EQ(model->shape.n_kv_channels(), 16U);
  EXPECT_EQ(model->shape.n_vocab, static_cast<std::size_t>(TinyModel::kVocab));
  EXPECT_EQ(model->output.weight.data, model->embedding.data);
}

TEST_F(ModelFileTest, ReadsWhatQwen3Adds) {
  const auto model = ModelFile::load(TinyModel::qwen3().write("model.gguf"));
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_EQ(model->shape.n_query_channels(), 64U);
  EXPECT_TRUE(model->shape.head_norms);
  EXPECT_FALSE(model->shape.post_norms);
  EXPECT_EQ(model->layers[1].k_norm.size(), 16U);
  EXPECT_EQ(model->rope.mode, RopeMode::kNeox);
  EXPECT_FLOAT_EQ(model->shape.score_scale, 0.25F);
}

TEST_F(ModelFileTest, ReadsWhatGemma3Adds) {
  TinyModel tiny = TinyModel::gemma3();
  tiny.rope_factor = 8.0F;
  const auto model = ModelFile::load(tiny.write("model.gguf"));
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_EQ(model->layers[0].window, 5U);
  EXPECT_EQ(model->layers[1].window, 0U);
  EXPECT_EQ(model->layers[2].window, 5U);
  EXPECT_EQ(model->layers[2].ffn_post_norm.size(), 32U);
  EXPECT_EQ(model->rope.freq_base, 1000.0F);
  EXPECT_EQ(model->rope.freq_scale, 0.125F);
  EXPECT_EQ(model->local_rope.freq_base, 10000.0F);
  EXPECT_EQ(model->local_rope.freq_scale, 1.0F);
  EXPECT_FLOAT_EQ(model->shape.embedding_scale, std::sqrt(32.0F));
  EXPECT_FLOAT_EQ(model->shape.score_scale, 0.25F);
}

// Its queries are scaled by another size than its heads'.
TEST_F(ModelFileTest, ReadsTheScaleOfGemma3With27B) {
  TinyModel tiny = TinyModel::gemma3();
  tiny.n_layers = 62;
  const auto model = ModelFile::load(tiny.write("model.gguf"));
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_FLOAT_EQ(model->shape.score_scale, 1.0F / std::sqrt(8.0F));
}

TEST_F(ModelFileTest, RefusesSoftcappedLogits) {
  TinyModel tiny = TinyModel::gemma3();
  tiny.logit_softcap = 30.0F;
  expect_error(tiny, StatusCode::kUnsupported, "softcapped logits");
}

TEST_F(ModelFileTest, RefusesListedWindows) {
  TinyModel tiny = TinyModel::gemma3();
  tiny.listed_windows = true;
  expect_error(tiny, StatusCode::kUnsupported, "listed layer by layer");
}

TEST_F(ModelFileTest, NamesAMissingNorm) {
  for (const char* name : {"blk.1.attn_k_norm.weight", "blk.2.post_ffw_norm.weight"}) {
    TinyModel tiny = TinyModel::gemma3();
    tiny.left_out = name;
    expect_error(tiny, StatusCode::kCorrupt, std::string(name) + " is missing");
  }
}

TEST_F(ModelFileTest, NamesAnArchitectureWithoutGradients) {
  TinyModel tiny;
  tiny.architecture = "gemma2";
  const std::string path = tiny.write("model.gguf");
  expect_error(path, StatusCode::kUnsupported, "this model is gemma2");
  expect_error(path, StatusCode::kUnsupported, "--weights uniform");
}

TEST_F(ModelFileTest, RefusesExperts) {
  TinyModel tiny;
  tiny.with_experts = true;
  expect_error(tiny, StatusCode::kUnsupported, "experts");
}

TEST_F(ModelFileTest, RefusesUnknownRopeScaling) {
  TinyModel tiny;
  tiny.rope_scaling = "longrope";
  expect_error(tiny, StatusCode::kUnsupported, "longrope");
}

TEST_F(ModelFileTest, NamesAMissingTensor) {
  TinyModel tiny;
  tiny.left_out = "blk.1.ffn_up.weight";
  expect_error(tiny, StatusCode::kCorrupt, "blk.1.ffn_up.weight is missing");
}

TEST_F(ModelFileTest, SaysBothShapes) {
  TinyModel tiny;
  tiny.wrong_columns = 4;
  expect_error(tiny, StatusCode::kCorrupt,
               "blk.1.ffn_down.weight: got shape 52 x 32, want 48 x 32");
}

TEST_F(ModelFileTest, RefusesMissingEmptyAndForeignFiles) {
  expect_error("/nonexistent.gguf", StatusCode::kNotFound, "/nonexistent.gguf");
  const auto folder = testing::temporary_folder();
  std::ofstream((folder / "empty.gguf").string());
  expect_error((folder / "empty.gguf").string(), StatusCode::kCorrupt, "ends after 0 bytes");
  std::ofstream((folder / "text.gguf").string()) << "This is no model.";
  expect_error((folder / "text.gguf").string(), StatusCode::kCorrupt, "not a GGUF file");
}

// Cut anywhere, the file is refused: in the header, the keys, the tensors.
TEST_F(ModelFileTest, RefusesTruncatedFiles) {
  const std::string path = TinyModel().write("model.gguf");
  const auto size = std::filesystem::file_size(path);
  for (const auto cut : {size - 1, size / 2, size / 10, std::uintmax_t{100}, std::uintmax_t{7}}) {
    std::filesystem::resize_file(path, cut);
    EXPECT_FALSE(ModelFile::load(path).ok()) << cut;
  }
}

}  // namespace
}  // namespace cqkv
