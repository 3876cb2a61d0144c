// The fingerprint of a model file: which layers have one, and what is refused.
#include "calibration/fingerprint.h"

#include <cstdint>
#include <filesystem>

#include <ggml.h>
#include <gtest/gtest.h>

#include "core/hash.h"
#include "model_pass/model_file.h"
#include "model_pass/tiny_model.h"

namespace cqkv {
namespace {

using testing::TinyModel;

class FingerprintTest : public ::testing::Test {
 protected:
  FingerprintTest() {
    ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  }
};

TEST_F(FingerprintTest, HashesTheNorms) {
  const std::string path = TinyModel().write("model.gguf");
  const auto fingerprint = model_fingerprint(path);
  ASSERT_TRUE(fingerprint.ok()) << fingerprint.status().message();
  const auto model = ModelFile::load(path);
  ASSERT_TRUE(model.ok());
  ASSERT_EQ(fingerprint->size(), 2U);
  for (std::size_t il = 0; il < 2; il++) {
    const auto& norm = model->layers[il].attn_norm;
    EXPECT_EQ((*fingerprint)[il], hash_bytes(norm.data(), norm.size() * sizeof(float)));
  }
}

TEST_F(FingerprintTest, OfAnUnknownNormIsZero) {
  TinyModel tiny;
  tiny.left_out = "blk.1.attn_norm.weight";
  const auto fingerprint = model_fingerprint(tiny.write("model.gguf"));
  ASSERT_TRUE(fingerprint.ok());
  EXPECT_NE((*fingerprint)[0], 0U);
  EXPECT_EQ((*fingerprint)[1], 0U);
}

TEST_F(FingerprintTest, OfATruncatedFileIsRefused) {
  const std::string path = TinyModel().write("model.gguf");
  const auto size = std::filesystem::file_size(path);
  for (const auto cut : {size - 1, size / 2, size / 10, std::uintmax_t{100}, std::uintmax_t{7}}) {
    std::filesystem::resize_file(path, cut);
    EXPECT_FALSE(model_fingerprint(path).ok()) << cut;
  }
}

}  // namespace
}  // namespace cqkv
