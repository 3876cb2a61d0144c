// GradientModel against central differences of its own loss, and its loss against
// libllama. Speed and real models are not tested here.
#include "model_pass/gradient.h"

#include <atomic>
#include <cmath>
#include <map>

#include <gtest/gtest.h>

#include "core/rng.h"
#include "model_pass/llama_loss.h"
#include "model_pass/tiny_model.h"

namespace cqkv {
namespace {

using testing::TinyModel;

GradientModel load(const std::string& path, int n_threads = 1,
                   std::size_t activation_bytes = std::size_t{1} << 30U,
                   std::optional<ExactTokens> exact = std::nullopt) {
  auto model = GradientModel::load(path, {n_threads, activation_bytes, exact});
  EXPECT_TRUE(model.ok()) << model.status().message();
  return *std::move(model);
}

// All rows and gradients of one run.
struct Collected {
  std::map<std::pair<int, KvKind>, std::vector<float>> rows, gradients;
  double loss = 0.0;
};

Collected collect(GradientModel& model, const std::vector<Token>& tokens) {
  Collected result;
  auto loss = model.run(tokens, [&](const KvRows& rows) {
    const std::size_t n = rows.n_tokens * rows.shape.n_channels();
    result.rows[{rows.layer, rows.kind}].assign(rows.rows, rows.rows + n);
    result.gradients[{rows.layer, rows.kind}].assign(rows.gradients, rows.gradients + n);
    return Status();
  });
  EXPECT_TRUE(loss.ok()) << loss.status().message();
  result.loss = loss.ok() ? *loss : 0.0;
  return result;
}

// Central differences of the summed loss by every element of one tensor.
std::vector<double> differences(GradientModel& model, const std::vector<Token>& tokens, int layer,
                                KvKind kind, float step) {
  const std::size_t n = tokens.size() * model.shape().n_kv_channels();
  std::vector<float> offset(n, 0.0F);
  std::vector<KvOffset> offsets(model.shape().n_layers);
  auto& slot = kind == KvKind::kKey ? offsets[layer].keys : offsets[layer].values;
  slot = offset.data();
  std::vector<double> result(n);
  for (std::size_t i = 0; i < n; i++) {
    offset[i] = step;
    const double above = *model.loss(tokens, offsets);
    offset[i] = -step;
    const double below = *model.loss(tokens, offsets);
    offset[i] = 0.0F;
    result[i] = (above - below) / (2.0 * step) * static_cast<double>(tokens.size() - 1);
  }
  return result;
}

// Differences have an error of about eps * loss / step = 1e-4 an element and one of
// step^2 times the third derivative; gradients are of size 0.1 to 1 here.
void expect_same_direction(const std::vector<float>& gradient, const std::vector<double>& expected,
                           const std::string& what) {
  ASSERT_EQ(gradient.size(), expected.size());
  double dot = 0.0;
  double square = 0.0;
  double expected_square = 0.0;
  for (std::size_t i = 0; i < gradient.size(); i++) {
    dot += gradient[i] * expected[i];
    square += static_cast<double>(gradient[i]) * gradient[i];
    expected_square += expected[i] * expected[i];
  }
  EXPECT_GT(dot / std::sqrt(square * expected_square), 0.9999) << what;
  EXPECT_NEAR(std::sqrt(square / expected_square), 1.0, 1e-3) << what;
}

void check_gradients(const TinyModel& tiny) {
  GradientModel model = load(tiny.write("model.gguf"));
  const auto tokens = testing::random_tokens(14, 3);
  const Collected collected = collect(model, tokens);
  for (int layer = 0; layer < tiny.n_layers; layer++) {
    for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
      const auto expected = differences(model, tokens, layer, kind, 1e-2F);
      expect_same_direction(
          collected.gradients.at({layer, kind}), expected,
          "layer " + std::to_string(layer) + " " + std::string(kv_kind_name(kind)));
    }
  }
}

TEST(GradientTest, MatchesDifferencesForLlama) {
  check_gradients({});
}

TEST(GradientTest, MatchesDifferencesForQwen2) {
  TinyModel tiny;
  tiny.architecture = "qwen2";
  tiny.biases = true;
  tiny.tied_output = false;
  check_gradients(tiny);
}

TEST(GradientTest, MatchesDifferencesForQwen3) {
  check_gradients(TinyModel::qwen3());
}

// The sequence is longer than the window.
TEST(GradientTest, MatchesDifferencesForGemma3) {
  check_gradients(TinyModel::gemma3());
}

// Yarn lengthens rotated keys: the gradient before RoPE must carry that factor.
TEST(GradientTest, MatchesDifferencesWithYarn) {
  TinyModel tiny;
  tiny.rope_scaling = "yarn";
  tiny.rope_factor = 4.0F;
  check_gradients(tiny);
}

void check_loss(const TinyModel& tiny, double tolerance = 1e-4) {
  const std::string path = tiny.write("model.gguf");
  GradientModel model = load(path);
  // Longer than a strip of rows and a block of queries, so that their seams are crossed.
  const auto tokens = testing::random_tokens(150, 5);
  const auto loss = model.loss(tokens);
  ASSERT_TRUE(loss.ok()) << loss.status().message();
  EXPECT_NEAR(*loss, testing::llama_loss(path, tokens), tolerance);
}

// ggml rounds GELU and what goes into it to half floats, 5e-4 of each value, and the errors
// average out over the tokens: 1.3e-4 at most here. A window of 83 that were 84 moves the
// loss by 9e-4, the shorter ones by 3e-2.
constexpr double kGeluTolerance = 4e-4;

TEST(GradientTest, LossMatchesLibllamaForLlama) {
  check_loss({});
}

TEST(GradientTest, LossMatchesLibllamaForQwen2) {
  TinyModel tiny;
  tiny.architecture = "qwen2";
  tiny.biases = true;
  tiny.tied_output = false;
  check_loss(tiny);
}

TEST(GradientTest, LossMatchesLibllamaForQwen3) {
  check_loss(TinyModel::qwen3());
}

TEST(GradientTest, LossMatchesLibllamaForGemma3) {
  check_loss(TinyModel::gemma3(), kGeluTolerance);
}

// Windows whose first key is not a block's first, nor a multiple of anything.
TEST(GradientTest, LossMatchesLibllamaWithLongerWindows) {
  for (const int window : {49, 83, 149, 150}) {
    TinyModel tiny = TinyModel::gemma3();
    tiny.window = window;
    check_loss(tiny, kGeluTolerance);
  }
}

TEST(GradientTest, LossMatchesLibllamaWithTheUsualPeriodOfWindows) {
  TinyModel tiny = TinyModel::gemma3();
  tiny.n_layers = 7;
  tiny.window_period = 0;
  check_loss(tiny, kGeluTolerance);
}

TEST(GradientTest, LossMatchesLibllamaWithoutWindows) {
  TinyModel tiny = TinyModel::gemma3();
  tiny.window = 0;
  check_loss(tiny, kGeluTolerance);
}

// Of the layers without a window alone.
TEST(GradientTest, LossMatchesLibllamaForGemma3WithLinearScaling) {
  TinyModel tiny = TinyModel::gemma3();
  tiny.rope_scaling = "linear";
  tiny.rope_factor = 8.0F;
  check_loss(tiny, kGeluTolerance);
}

TEST(GradientTest, LossMatchesLibllamaWithFrequencyFactors) {
  TinyModel tiny;
  tiny.freq_factors = true;
  check_loss(tiny);
}

TEST(GradientTest, LossMatchesLibllamaWithLinearScaling) {
  TinyModel tiny;
  tiny.rope_scaling = "linear";
  tiny.rope_factor = 4.0F;
  check_loss(tiny);
}

TEST(GradientTest, LossMatchesLibllamaWithYarn) {
  TinyModel tiny;
  tiny.rope_scaling = "yarn";
  tiny.rope_factor = 4.0F;
  check_loss(tiny);
}

TEST(GradientTest, LossMatchesLibllamaWithWideHeads) {
  TinyModel tiny;
  tiny.head_dim = 16;  // n_heads * head_dim is not n_embd
  tiny.n_kv_heads = 1;
  check_loss(tiny);
}

TEST(GradientTest, LossOfRunIsLoss) {
  GradientModel model = load(TinyModel().write("model.gguf"));
  const auto tokens = testing::random_tokens(20, 1);
  EXPECT_EQ(collect(model, tokens).loss, *model.loss(tokens));
}

void check_threads_and_memory(const TinyModel& tiny) {
  const std::string path = tiny.write("model.gguf");
  const auto tokens = testing::random_tokens(200, 2);
  GradientModel one = load(path, 1);
  GradientModel four = load(path, 4);
  GradientModel frugal = load(path, 3, 1);  // keeps no activations
  const Collected expected = collect(one, tokens);
  for (GradientModel* other : {&four, &frugal}) {
    const Collected got = collect(*other, tokens);
    EXPECT_EQ(got.loss, expected.loss);
    EXPECT_EQ(got.rows, expected.rows);
    EXPECT_EQ(got.gradients, expected.gradients);
  }
}

TEST(GradientTest, DoesNotDependOnThreadsOrMemory) {
  check_threads_and_memory({});
  check_threads_and_memory(TinyModel::gemma3());
}

// The buffers of a long sequence must not show in a shorter one.
TEST(GradientTest, SequencesAreIndependent) {
  const std::string path = TinyModel().write("model.gguf");
  GradientModel used = load(path);
  collect(used, testing::random_tokens(150, 2));
  GradientModel fresh = load(path);
  const auto tokens = testing::random_tokens(30, 4);
  EXPECT_EQ(collect(used, tokens).gradients, collect(fresh, tokens).gradients);
}

TEST(GradientTest, StopsWhenCancelled) {
  GradientModel model = load(TinyModel().write("model.gguf"));
  std::atomic<bool> cancel{false};
  int n_delivered = 0;
  const auto loss = model.run(
      testing::random_tokens(20, 1),
      [&](const KvRows&) {
        n_delivered++;
        cancel = true;
        return Status();
      },
      &cancel);
  ASSERT_FALSE(loss.ok());
  EXPECT_EQ(loss.status().code(), StatusCode::kCancelled);
  EXPECT_EQ(n_delivered, 2);  // keys and values of the last layer
}

TEST(GradientTest, ReturnsTheSinksError) {
  GradientModel model = load(TinyModel().write("model.gguf"));
  const auto loss =
      model.run(testing::random_tokens(20, 1), [](const KvRows&) { return io_error("disk full"); });
  ASSERT_FALSE(loss.ok());
  EXPECT_EQ(loss.status().message(), "disk full");
}

TEST(GradientTest, NamesValuesThatAreNotFinite) {
  TinyModel tiny;
  tiny.nan_in_layer_1 = 1.0F;
  GradientModel model = load(tiny.write("model.gguf"));
  const auto loss =
      model.run(testing::random_tokens(20, 1), [](const KvRows&) { return Status(); });
  ASSERT_FALSE(loss.ok());
  EXPECT_EQ(loss.status().code(), StatusCode::kCorrupt);
  EXPECT_NE(loss.status().message().find("layer 1, key row of token 0"), std::string::npos)
      << loss.status().message();
}

TEST(GradientTest, RefusesBadTokens) {
  GradientModel model = load(TinyModel().write("model.gguf"));
  EXPECT_EQ(model.loss(std::vector<Token>{1}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(model.loss(std::vector<Token>{1, TinyModel::kVocab}).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(model.loss(std::vector<Token>{1, -1}).status().code(), StatusCode::kInvalidArgument);
}

// What a cache keeps exactly gets no gradient, and without a window all gradients are far; in
// between they differ from the whole ones. (Against finite differences: attention_pass_test.cpp.)
TEST(FarGradients, AreThoseThroughQueriesThatReadCodes) {
  const TinyModel tiny;
  const std::string path = tiny.write("far.gguf");
  const std::vector<Token> tokens = testing::random_tokens(40, 5);
  const auto gradients = [&](std::optional<ExactTokens> exact) {
    GradientModel model = load(path, 2, std::size_t{1} << 30U, exact);
    return collect(model, tokens);
  };
  const Collected whole = gradients(std::nullopt);
  const Collected all_exact = gradients(ExactTokens{40, 0});
  const Collected all_far = gradients(ExactTokens{0, 0});
  const Collected some = gradients(ExactTokens{8, 2});
  EXPECT_EQ(all_far.loss, whole.loss);
  for (const auto& [tensor, full] : whole.gradients) {
    const auto& far = all_far.gradients.at(tensor);
    double distance = 0;
    for (std::size_t i = 0; i < full.size(); i++) {
      ASSERT_EQ(all_exact.gradients.at(tensor)[i], 0.0F);
      ASSERT_NEAR(far[i], full[i], 1e-5 * (1 + std::abs(full[i])));
      distance += std::abs(some.gradients.at(tensor)[i] - full[i]);
    }
    EXPECT_GT(distance, 1e-3);
    // The first 2 and the last 8 tokens are nobody's codes, nor is the one before: only the last
    // token finds it coded, which predicts nothing.
    const std::size_t n_channels = full.size() / tokens.size();
    for (std::size_t i = 0; i < full.size(); i++) {
      const std::size_t t = i / n_channels;
      ASSERT_EQ(some.gradients.at(tensor)[i] == 0.0F, t < 2 || t > 30) << t;
    }
  }
}

// Coarse: four centroids for a whole head.
Codebook random_codebook(const ModelShape& shape) {
  const auto head_dim = static_cast<int>(shape.head_dim);
  const TensorSpec spec(CodecSpec{head_dim, 2}, static_cast<int>(shape.n_kv_heads), head_dim);
  Rng rng(17);
  Codebook codebook;
  codebook.layers.resize(shape.n_layers);
  for (LayerCodebook& layer : codebook.layers) {
    for (auto* side : {&layer.k, &layer.v}) {
      std::vector<float> centroids(4 * shape.n_kv_channels());
      for (float& value : centroids) {
        value = static_cast<float>(rng.normal());
      }
      side->push_back(TensorCodebook::create(spec, centroids).value());
    }
  }
  return codebook;
}

// With every token coded, codes are offsets that nobody has to know before: those of the rows that
// the coded run itself finds.
TEST(FarGradients, OfCodesAreThoseOfTheModelThatReadsThem) {
  const std::string path = TinyModel().write("codes.gguf");
  const std::vector<Token> tokens = testing::random_tokens(40, 6);
  GradientModel model = load(path, 2, std::size_t{1} << 30U, ExactTokens{0, 0});
  const Collected plain = collect(model, tokens);
  const Codebook codebook = random_codebook(model.shape());
  ASSERT_TRUE(model.use_codes(&codebook).ok());
  const Collected coded = collect(model, tokens);
  EXPECT_GT(std::abs(coded.loss - plain.loss), 1e-3);

  std::map<std::pair<int, KvKind>, std::vector<float>> errors;
  std::vector<KvOffset> offsets(model.shape().n_layers);
  for (const auto& [tensor, rows] : coded.rows) {
    const auto [layer, kind] = tensor;
    const TensorCodebook& codec = *codebook.layers[layer].get(kind);
    std::vector<std::uint16_t> codes(tokens.size() * codec.n_codes());
    std::vector<float>& error = errors[tensor];
    error.resize(rows.size());
    codec.encode(rows.data(), tokens.size(), codec.n_channels(), codes.data());
    codec.decode(codes.data(), tokens.size(), error.data(), codec.n_channels());
    for (std::size_t i = 0; i < rows.size(); i++) {
      error[i] -= rows[i];
    }
    (kind == KvKind::kKey ? offsets[layer].keys : offsets[layer].values) = error.data();
  }
  ASSERT_TRUE(model.use_codes(nullptr).ok());
  EXPECT_NEAR(*model.loss(tokens, offsets), coded.loss, 1e-5);
  EXPECT_EQ(collect(model, tokens).gradients, plain.gradients);

  // Layers computed again on the way back are the same.
  GradientModel again = load(path, 1, 0, ExactTokens{0, 0});
  ASSERT_TRUE(again.use_codes(&codebook).ok());
  EXPECT_EQ(collect(again, tokens).gradients, coded.gradients);
}

TEST(FarGradients, NeedCodebooksOfTheModel) {
  const std::string path = TinyModel().write("codes.gguf");
  GradientModel model = load(path, 1, 0, ExactTokens{8, 2});
  ModelShape other = model.shape();
  other.n_kv_heads *= 2;
  const Codebook wrong = random_codebook(other);
  EXPECT_EQ(model.use_codes(&wrong).code(), StatusCode::kInvalidArgument);
  GradientModel without = load(path);
  const Codebook right = random_codebook(model.shape());
  EXPECT_EQ(without.use_codes(&right).code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace cqkv
