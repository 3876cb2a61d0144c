// KvCapture against the keys and values of the gradient pass, which computes them
// without libllama. Architectures beyond those of the gradient pass are not in the tests.
#include "model_pass/capture.h"

#include <atomic>
#include <cmath>
#include <map>

#include <gtest/gtest.h>

#include "llama/handles.h"
#include "model_pass/gradient.h"
#include "model_pass/tiny_model.h"

namespace cqkv {
namespace {

using testing::TinyModel;

using RowMap = std::map<std::pair<int, KvKind>, std::vector<float>>;

// A sink that puts pieces together.
KvSink append_to(RowMap& all) {
  return [&all](const KvRows& rows) {
    auto& to = all[{rows.layer, rows.kind}];
    EXPECT_EQ(to.size(), rows.first_token * rows.shape.n_channels());
    to.insert(to.end(), rows.rows, rows.rows + rows.n_tokens * rows.shape.n_channels());
    return Status();
  };
}

class CaptureTest : public ::testing::Test {
 protected:
  CaptureTest() {
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  }

  static KvCapture load(const std::string& path, int n_ctx) {
    auto capture = KvCapture::load(path, n_ctx, 2);
    EXPECT_TRUE(capture.ok()) << capture.status().message();
    return *std::move(capture);
  }
};

// libllama attends in f16 (flash attention), which reaches the next layers' rows with
// about 1e-3; rows themselves are f32 and of size 1.
void check_against_gradient_pass(const TinyModel& tiny, std::size_t n_tokens) {
  const std::string path = tiny.write("model.gguf");
  const auto tokens = testing::random_tokens(n_tokens, 11);
  RowMap expected;
  auto model = GradientModel::load(path, {});
  ASSERT_TRUE(model.ok()) << model.status().message();
  ASSERT_TRUE(model->run(tokens, append_to(expected)).ok());
  RowMap got;
  auto capture = KvCapture::load(path, static_cast<int>(n_tokens), 2);
  ASSERT_TRUE(capture.ok()) << capture.status().message();
  const Status status = capture->run(tokens, append_to(got));
  ASSERT_TRUE(status.ok()) << status.message();
  ASSERT_EQ(got.size(), expected.size());
  for (const auto& [key, rows] : expected) {
    ASSERT_EQ(got[key].size(), rows.size());
    const float tolerance = key.first == 0 ? 1e-4F : 2e-2F;
    for (std::size_t i = 0; i < rows.size(); i++) {
      ASSERT_NEAR(got[key][i], rows[i], tolerance)
          << "layer " << key.first << " " << kv_kind_name(key.second) << " element " << i;
    }
  }
}

TEST_F(CaptureTest, AgreesWithGradientPassForLlama) {
  check_against_gradient_pass({}, 40);
}

TEST_F(CaptureTest, AgreesWithGradientPassForQwen2) {
  TinyModel tiny;
  tiny.architecture = "qwen2";
  tiny.biases = true;
  check_against_gradient_pass(tiny, 40);
}

TEST_F(CaptureTest, AgreesWithGradientPassForQwen3) {
  check_against_gradient_pass(TinyModel::qwen3(), 40);
}

TEST_F(CaptureTest, AgreesWithGradientPassForGemma3) {
  check_against_gradient_pass(TinyModel::gemma3(), 40);
}

TEST_F(CaptureTest, AgreesWithGradientPassAcrossPieces) {
  check_against_gradient_pass({}, 700);
  check_against_gradient_pass(TinyModel::gemma3(), 700);
}

TEST_F(CaptureTest, AgreesWithGradientPassWithYarnAndFactors) {
  TinyModel tiny;
  tiny.rope_scaling = "yarn";
  tiny.rope_factor = 4.0F;
  tiny.freq_factors = true;
  check_against_gradient_pass(tiny, 40);
}

// Of text, rotations in sections are NeoX; keys are the same before either. Pairs by the fourth
// position are not rotated and must not be rotated back, which layer 0 shows: layer 1 has other
// rows then. (qwen2vl's norms add another epsilon: 1e-5 of a row, 1e-3 a layer later.)
TEST_F(CaptureTest, RotatesBackFromSections) {
  TinyModel tiny;
  tiny.architecture = "qwen2";
  tiny.biases = true;
  const auto tokens = testing::random_tokens(40, 11);
  RowMap want;
  ASSERT_TRUE(load(tiny.write("neox.gguf"), 64).run(tokens, append_to(want)).ok());
  tiny.architecture = "qwen2vl";
  for (const bool fourth : {false, true}) {
    tiny.rope_sections = fourth ? std::vector{1, 1, 1, 1} : std::vector{1, 1, 2, 0};
    RowMap got;
    ASSERT_TRUE(load(tiny.write("sections.gguf"), 64).run(tokens, append_to(got)).ok());
    for (const int layer : {0, 1}) {
      const std::vector<float>& keys = got.at({layer, KvKind::kKey});
      const std::vector<float>& want_keys = want.at({layer, KvKind::kKey});
      ASSERT_EQ(keys.size(), want_keys.size());
      for (std::size_t i = 0; i < keys.size() && (layer == 0 || !fourth); i++) {
        ASSERT_NEAR(keys[i], want_keys[i], layer == 0 ? 1e-3F : 5e-3F)
            << "layer " << layer << " element " << i;
      }
    }
  }
}

// maincoder has qwen3's tensors, but norms keys after their rotation; the device refuses it in the
// same words (tests/device/model_matrix_test.cpp). Exact keys need not be taken.
TEST_F(CaptureTest, KeysThatCannotBeRotatedBackAreRefusedOrLeftOut) {
  TinyModel tiny = TinyModel::qwen3();
  tiny.architecture = "maincoder";
  const std::string path = tiny.write("model.gguf");
  const auto tokens = testing::random_tokens(30, 1);
  RowMap rows;
  const Status status = load(path, 64).run(tokens, append_to(rows));
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  for (const char* part : {"model.gguf", "keys of layer 0", "follows the rotary embedding"}) {
    EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
  }
  auto values = KvCapture::load(path, 64, 2, /*wants_keys=*/false);
  ASSERT_TRUE(values.ok()) << values.status().message();
  rows.clear();
  const Status without = values->run(tokens, append_to(rows));
  ASSERT_TRUE(without.ok()) << without.message();
  EXPECT_EQ(rows.size(), 2U);
  EXPECT_TRUE(rows.contains({0, KvKind::kValue}));
  EXPECT_TRUE(rows.contains({1, KvKind::kValue}));
}

TEST_F(CaptureTest, SequencesAreIndependent) {
  KvCapture capture = load(TinyModel().write("model.gguf"), 64);
  const auto tokens = testing::random_tokens(30, 1);
  RowMap first;
  RowMap between;
  RowMap second;
  ASSERT_TRUE(capture.run(tokens, append_to(first)).ok());
  ASSERT_TRUE(capture.run(testing::random_tokens(50, 2), append_to(between)).ok());
  ASSERT_TRUE(capture.run(tokens, append_to(second)).ok());
  EXPECT_EQ(first, second);
}

TEST_F(CaptureTest, NamesValuesThatAreNotFinite) {
  TinyModel tiny;
  tiny.nan_in_layer_1 = 1.0F;
  KvCapture capture = load(tiny.write("model.gguf"), 64);
  RowMap rows;
  const Status status = capture.run(testing::random_tokens(10, 1), append_to(rows));
  EXPECT_EQ(status.code(), StatusCode::kCorrupt);
  EXPECT_NE(status.message().find("layer 1, key row of token 0"), std::string::npos)
      << status.message();
}

TEST_F(CaptureTest, StopsWhenCancelled) {
  KvCapture capture = load(TinyModel().write("model.gguf"), 64);
  std::atomic<bool> cancel{false};
  int n_delivered = 0;
  const auto sink = [&](const KvRows&) {
    n_delivered++;
    cancel = true;
    return Status();
  };
  EXPECT_EQ(capture.run(testing::random_tokens(10, 1), sink, &cancel).code(),
            StatusCode::kCancelled);
  EXPECT_EQ(n_delivered, 1);
}

TEST_F(CaptureTest, ReturnsTheSinksError) {
  KvCapture capture = load(TinyModel().write("model.gguf"), 64);
  const Status status = capture.run(testing::random_tokens(10, 1),
                                    [](const KvRows&) { return io_error("disk full"); });
  EXPECT_EQ(status.message(), "disk full");
}

TEST_F(CaptureTest, RefusesBadSequences) {
  KvCapture capture = load(TinyModel().write("model.gguf"), 64);
  RowMap rows;
  EXPECT_EQ(capture.run(std::vector<Token>{1}, append_to(rows)).code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(capture.run(testing::random_tokens(65, 1), append_to(rows)).code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(capture.run(std::vector<Token>{1, 100000}, append_to(rows)).code(),
            StatusCode::kInvalidArgument);
}

TEST_F(CaptureTest, NamesAMissingFile) {
  const auto capture = KvCapture::load("/nonexistent.gguf", 64, 1);
  ASSERT_FALSE(capture.ok());
  EXPECT_EQ(capture.status().code(), StatusCode::kNotFound);
  EXPECT_NE(capture.status().message().find("/nonexistent.gguf"), std::string::npos);
}

}  // namespace
}  // namespace cqkv
