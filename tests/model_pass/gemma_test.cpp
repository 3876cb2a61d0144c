// The gradient pass on gemma-3-270m, whose sliding windows of 512 tokens are shorter than
// the sequence: rows and loss against libllama, gradients against differences of the
// loss. Skipped unless CQKV_GEMMA_MODEL names the file (scripts/models.sh gemma).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "calibration/text.h"
#include "llama/handles.h"
#include "model_pass/capture.h"
#include "model_pass/gradient.h"
#include "model_pass/llama_loss.h"

namespace cqkv {
namespace {

using RowMap = std::map<std::pair<int, KvKind>, std::vector<float>>;

class GemmaTest : public ::testing::Test {
 protected:
  static constexpr std::size_t kTokens = 600;

  void SetUp() override {
    const char* file = std::getenv("CQKV_GEMMA_MODEL");
    if (file == nullptr) {
      GTEST_SKIP() << "CQKV_GEMMA_MODEL is not set";
    }
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    path = file;
    const auto tokenizer = Tokenizer::load(path);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
    const auto sequences = read_sequences(
        *tokenizer, {{std::string(CQKV_DATA) + "/wikitext2-test.txt"}, "text", kTokens, kTokens});
    ASSERT_TRUE(sequences.ok()) << sequences.status().message();
    tokens = (*sequences)[0].tokens;
    auto loaded = GradientModel::load(path, {2});
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    model.emplace(*std::move(loaded));
  }

  std::string path;
  std::vector<Token> tokens;
  std::optional<GradientModel> model;
};

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); i++) {
    sum += static_cast<double>(a[i]) * b[i];
  }
  return sum;
}

// A sink that puts pieces together.
KvSink append_to(RowMap& all) {
  return [&all](const KvRows& rows) {
    auto& to = all[{rows.layer, rows.kind}];
    to.insert(to.end(), rows.rows, rows.rows + rows.n_tokens * rows.shape.n_channels());
    return Status();
  };
}

// libllama rounds activations to 8 bits, which moves a row by some percent of its length.
TEST_F(GemmaTest, RowsAndLossAgreeWithLibllama) {
  RowMap expected;
  const auto loss = model->run(tokens, append_to(expected));
  ASSERT_TRUE(loss.ok()) << loss.status().message();
  auto capture = KvCapture::load(path, kTokens, 2);
  ASSERT_TRUE(capture.ok()) << capture.status().message();
  RowMap got;
  ASSERT_TRUE(capture->run(tokens, append_to(got)).ok());
  ASSERT_EQ(got.size(), 36U);
  ASSERT_EQ(expected.size(), got.size());
  double lowest = 1.0;
  for (const auto& [key, rows] : expected) {
    const auto& other = got.at(key);
    ASSERT_EQ(rows.size(), other.size());
    const double cosine = dot(rows, other) / std::sqrt(dot(rows, rows) * dot(other, other));
    EXPECT_GT(cosine, 0.995) << "layer " << key.first << " " << kv_kind_name(key.second);
    lowest = std::min(lowest, cosine);
  }
  const double theirs = testing::llama_loss(path, tokens);
  EXPECT_NEAR(*loss, theirs, 0.01 * theirs);
  std::printf("loss %.4f, libllama's %.4f, lowest cosine %.5f\n", *loss, theirs, lowest);
}

// Along its own direction the loss grows by the length of the gradient: with a step that
// moves it by a nat, far beyond the rounding of f32 in a loss of some thousand nats.
TEST_F(GemmaTest, GradientsAreTheSlopesOfTheLoss) {
  RowMap gradients;
  const auto loss = model->run(tokens, [&](const KvRows& rows) {
    const std::size_t n = rows.n_tokens * rows.shape.n_channels();
    gradients[{rows.layer, rows.kind}].assign(rows.gradients, rows.gradients + n);
    return Status();
  });
  ASSERT_TRUE(loss.ok()) << loss.status().message();
  const auto n_predicted = static_cast<double>(tokens.size() - 1);
  for (const int layer : {0, 5, 17}) {  // 5 and 17 have no window
    for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
      const auto& gradient = gradients.at({layer, kind});
      const double square = dot(gradient, gradient);
      std::vector<float> step = gradient;
      for (float& value : step) {
        value *= static_cast<float>(0.5 / square);
      }
      std::vector<KvOffset> offsets(model->shape().n_layers);
      auto& slot = kind == KvKind::kKey ? offsets[layer].keys : offsets[layer].values;
      slot = step.data();
      const auto above = model->loss(tokens, offsets);
      for (float& value : step) {
        value = -value;
      }
      const auto below = model->loss(tokens, offsets);
      ASSERT_TRUE(above.ok() && below.ok());
      EXPECT_NEAR((*above - *below) * n_predicted, 1.0, 0.05)
          << "layer " << layer << " " << kv_kind_name(kind);
    }
  }
}

}  // namespace
}  // namespace cqkv
