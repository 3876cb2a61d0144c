// The whole recipe on the tiny model, and the collector of rows and weights.
#include "calibration/calibrate.h"

#include <algorithm>
#include <atomic>
#include <fstream>
#include <limits>

#include <gtest/gtest.h>

#include "calibration/samples.h"
#include "model_pass/tiny_model.h"

namespace cqkv {
namespace {

using testing::TinyModel;

class CalibrateTest : public ::testing::Test {
 protected:
  CalibrateTest() {
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  }

  static CalibrationOptions options(const TinyModel& tiny, Weighting weighting) {
    CalibrationOptions result;
    result.model_path = tiny.write("model.gguf");
    const auto text = testing::temporary_folder() / "text.txt";
    std::ofstream file(text);
    for (int i = 0; i < 300; i++) {
      file << i * i << (i % 10 == 9 ? "\n" : " ");
    }
    result.text = {{text.string()}, "text", 256, 64};
    result.configs = {{{4, 4}, {8, 3}}};
    result.weighting = weighting;
    result.max_iterations = 5;
    return result;
  }
};

void check_codebook(const Calibration& calibration, const std::string& weighting) {
  ASSERT_EQ(calibration.codebooks.size(), 1U);
  const Codebook& codebook = calibration.codebooks[0].codebook;
  ASSERT_EQ(codebook.layers.size(), 2U);
  for (const auto& layer : codebook.layers) {
    ASSERT_NE(layer.get(KvKind::kKey), nullptr);
    ASSERT_NE(layer.get(KvKind::kValue), nullptr);
    EXPECT_EQ(layer.get(KvKind::kKey)->spec().spec(0), (CodecSpec{4, 4}));
    EXPECT_EQ(layer.get(KvKind::kValue)->spec().spec(0), (CodecSpec{8, 3}));
    EXPECT_EQ(layer.get(KvKind::kKey)->n_kv_heads(), 2);
    EXPECT_EQ(layer.get(KvKind::kKey)->head_dim(), 8);
  }
  EXPECT_EQ(codebook.origin.weighting, weighting);
  EXPECT_EQ(codebook.origin.architecture, "llama");
  EXPECT_EQ(codebook.origin.model_name, "tiny");
  EXPECT_EQ(codebook.origin.datasets, std::vector<std::string>{"text.txt"});
  EXPECT_EQ(codebook.origin.n_tokens, 256U);
  EXPECT_EQ(codebook.origin.model_fingerprint.size(), 2U);
  EXPECT_EQ(calibration.stats.n_sequences, 4U);
  EXPECT_EQ(calibration.codebooks[0].tensors.size(), 4U);
}

TEST_F(CalibrateTest, LearnsWithUniformWeights) {
  const auto calibration = calibrate(options({}, Weighting::kUniform));
  ASSERT_TRUE(calibration.ok()) << calibration.status().message();
  check_codebook(*calibration, "uniform");
}

TEST_F(CalibrateTest, LearnsWithFisherWeights) {
  const auto calibration = calibrate(options({}, Weighting::kFisher));
  ASSERT_TRUE(calibration.ok()) << calibration.status().message();
  check_codebook(*calibration, "fisher");
  EXPECT_GT(calibration->stats.mean_loss, 0.0);
}

TEST_F(CalibrateTest, LearnsWithFisherWeightsForAllArchitectures) {
  TinyModel qwen2;
  qwen2.architecture = "qwen2";
  for (const TinyModel& tiny : {qwen2, TinyModel::qwen3(), TinyModel::gemma3()}) {
    const auto calibration = calibrate(options(tiny, Weighting::kFisher));
    ASSERT_TRUE(calibration.ok()) << calibration.status().message();
    const Codebook& codebook = calibration->codebooks[0].codebook;
    EXPECT_EQ(codebook.origin.architecture, tiny.architecture);
    ASSERT_EQ(codebook.layers.size(), static_cast<std::size_t>(tiny.n_layers));
    for (const auto& layer : codebook.layers) {
      for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
        ASSERT_NE(layer.get(kind), nullptr);
        EXPECT_EQ(layer.get(kind)->n_kv_heads(), tiny.n_kv_heads);
        EXPECT_EQ(layer.get(kind)->head_dim(), tiny.head_dim);
      }
    }
  }
}

TEST_F(CalibrateTest, FisherDoesNotDependOnThreads) {
  CalibrationOptions chosen = options({}, Weighting::kFisher);
  const auto one = calibrate(chosen);
  chosen.n_threads = 3;
  const auto three = calibrate(chosen);
  ASSERT_TRUE(one.ok() && three.ok());
  EXPECT_EQ(one->codebooks[0].codebook.identity(), three->codebooks[0].codebook.identity());
}

TEST_F(CalibrateTest, KeepsExactTensorsOut) {
  CalibrationOptions chosen = options({}, Weighting::kUniform);
  chosen.configs[0].keys = {};
  const auto calibration = calibrate(chosen);
  ASSERT_TRUE(calibration.ok()) << calibration.status().message();
  const Codebook& codebook = calibration->codebooks[0].codebook;
  EXPECT_EQ(codebook.layers[0].get(KvKind::kKey), nullptr);
  EXPECT_NE(codebook.layers[0].get(KvKind::kValue), nullptr);
  EXPECT_EQ(codebook.origin.held_out.keys, 0);
  EXPECT_GT(codebook.origin.held_out.values, 0);
}

// The model runs once for all, and no codebook may know of the others.
TEST_F(CalibrateTest, SeveralConfigurationsEqualThoseLearnedOneByOne) {
  const std::vector<KvConfig> configs = {
      {{4, 4}, {8, 3}}, {{2, 4}, {2, 4}}, {{}, {8, 3}}, {{4, 3}, {}}};
  for (const Weighting weighting : {Weighting::kUniform, Weighting::kFisher}) {
    CalibrationOptions chosen = options({}, weighting);
    chosen.configs = configs;
    const auto together = calibrate(chosen);
    ASSERT_TRUE(together.ok()) << together.status().message();
    ASSERT_EQ(together->codebooks.size(), configs.size());
    for (std::size_t i = 0; i < configs.size(); i++) {
      chosen.configs = {configs[i]};
      const auto alone = calibrate(chosen);
      ASSERT_TRUE(alone.ok()) << alone.status().message();
      const Codebook& one = alone->codebooks[0].codebook;
      const Codebook& many = together->codebooks[i].codebook;
      EXPECT_EQ(one.identity(), many.identity()) << configs[i].name();
      EXPECT_EQ(one.origin.name, many.origin.name);
      EXPECT_EQ(one.origin.held_out.keys, many.origin.held_out.keys);
      EXPECT_EQ(one.origin.held_out.values, many.origin.held_out.values);
      EXPECT_EQ(alone->codebooks[0].tensors.size(), together->codebooks[i].tensors.size());
    }
  }
}

// One byte for 2 to 64 channels; heads of a budget differ, and budgets are kept. A byte has 256
// centroids, which want as many tokens.
TEST_F(CalibrateTest, ChoosesRatesUnderABudget) {
  TinyModel tiny;
  tiny.head_dim = 64;
  CalibrationOptions wanted = options(tiny, Weighting::kFisher);
  wanted.text.n_tokens = 640;
  wanted.text.repeat = true;
  wanted.bits = {0.25, 1, 2};
  wanted.far_gradients = true;
  wanted.window = 8;
  wanted.n_threads = 2;
  const auto result = calibrate(wanted);
  ASSERT_TRUE(result.ok()) << result.status().message();
  ASSERT_EQ(result->codebooks.size(), 3U);
  for (std::size_t i = 0; i < 3; i++) {
    const CalibratedCodebook& got = result->codebooks[i];
    EXPECT_EQ(got.name, budget_name(wanted.bits[i]));
    EXPECT_LE(got.codebook.bits_per_channel(), wanted.bits[i]);
    EXPECT_GT(got.codebook.bits_per_channel(), 0.5 * wanted.bits[i]);
    for (const LayerCodebook& layer : got.codebook.layers) {
      EXPECT_EQ(layer.get(KvKind::kKey)->spec().code_bits(), 8);
      EXPECT_EQ(layer.get(KvKind::kValue)->head_dim(), 64);
      EXPECT_TRUE(layer.get(KvKind::kKey)->basis().has_order());
      EXPECT_TRUE(layer.get(KvKind::kValue)->basis().has_rotation());
    }
    EXPECT_EQ(got.codebook.origin.held_out.n_tokens, 0U) << "no share of the variance is known";
  }
  // The budget does not change what a head's codebook at a rate is.
  wanted.bits = {1};
  wanted.n_threads = 1;
  const auto alone = calibrate(wanted);
  ASSERT_TRUE(alone.ok()) << alone.status().message();
  EXPECT_EQ(alone->codebooks[0].codebook.identity(), result->codebooks[1].codebook.identity());
  wanted.bases = false;
  const auto plain = calibrate(wanted);
  ASSERT_TRUE(plain.ok()) << plain.status().message();
  EXPECT_TRUE(plain->codebooks[0].codebook.layers[0].get(KvKind::kKey)->basis().plain());
}

// Groups of 64, 32 and 16 channels do not divide heads of 24.
TEST_F(CalibrateTest, BudgetsOfOddHeads) {
  TinyModel tiny;
  tiny.head_dim = 24;
  CalibrationOptions wanted = options(tiny, Weighting::kFisher);
  wanted.text.n_tokens = 320;
  wanted.bits = {2};
  const auto result = calibrate(wanted);
  ASSERT_TRUE(result.ok()) << result.status().message();
  for (const LayerCodebook& layer : result->codebooks[0].codebook.layers) {
    for (const int dim : layer.get(KvKind::kValue)->spec().group_dims()) {
      EXPECT_LE(dim, 8);
    }
  }
}

TEST_F(CalibrateTest, RefusesBudgetsThatMakeNoSense) {
  const auto code = [&](std::vector<double> bits, Weighting weighting) {
    CalibrationOptions wanted = options(TinyModel(), weighting);
    wanted.bits = std::move(bits);
    return calibrate(wanted).status().code();
  };
  EXPECT_EQ(code({0}, Weighting::kFisher), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({5}, Weighting::kFisher), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({1, 2, 1}, Weighting::kFisher), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({1}, Weighting::kUniform), StatusCode::kInvalidArgument);
}

// Nothing would be read as codes, and nothing cost anything.
TEST_F(CalibrateTest, RefusesSequencesInsideTheWindow) {
  CalibrationOptions wanted = options(TinyModel(), Weighting::kFisher);
  wanted.bits = {1};
  wanted.far_gradients = true;
  wanted.window = static_cast<std::uint32_t>(wanted.text.n_ctx) - wanted.sinks;
  const Status status = calibrate(wanted).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("--ctx-size"), std::string::npos) << status.message();
}

TEST_F(CalibrateTest, RefusesConfigurationsThatMakeNoSense) {
  CalibrationOptions chosen = options({}, Weighting::kUniform);
  chosen.configs = {{{4, 4}, {4, 4}}, {{8, 4}, {8, 4}}, {{4, 4}, {4, 4}}};
  auto calibration = calibrate(chosen);
  EXPECT_EQ(calibration.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(calibration.status().message().find("4c4b twice"), std::string::npos)
      << calibration.status().message();
  chosen.configs = {{{}, {}}};
  EXPECT_EQ(calibrate(chosen).status().code(), StatusCode::kInvalidArgument);
  chosen.configs = {};
  EXPECT_EQ(calibrate(chosen).status().code(), StatusCode::kInvalidArgument);
}

// Before the model runs: with a few tokens calibration once ended well and lost "0.0 %".
TEST_F(CalibrateTest, RefusesFewerTokensThanCentroids) {
  CalibrationOptions chosen = options({}, Weighting::kUniform);
  chosen.configs = {{{4, 4}, {4, 4}}, {{8, 8}, {8, 4}}};
  bool ran = false;
  CalibrationEvents events;
  events.progress = [&](const CalibrationProgress& progress) {
    ran = ran || progress.stage != "reading texts";
  };
  const auto calibration = calibrate(chosen, events);
  EXPECT_EQ(calibration.status().code(), StatusCode::kInvalidArgument);
  for (const char* word :
       {"got 240 tokens", "256 less 16 held out", "at least 256", "8c8b", "--n-tokens"}) {
    EXPECT_NE(calibration.status().message().find(word), std::string::npos)
        << calibration.status().message();
  }
  EXPECT_FALSE(ran);
}

TEST_F(CalibrateTest, WarnsBeforeTheModelRuns) {
  CalibrationOptions chosen = options({}, Weighting::kUniform);
  std::ofstream(chosen.text.files[0]) << std::string(300, 'a');
  std::vector<std::string> order;
  CalibrationEvents events;
  events.progress = [&](const CalibrationProgress& progress) {
    order.emplace_back(progress.stage);
  };
  events.warning = [&](const std::string& message) { order.push_back("! " + message); };
  ASSERT_TRUE(calibrate(chosen, events).ok());
  ASSERT_GE(order.size(), 4U);
  EXPECT_NE(order[1].find("! the texts have only"), std::string::npos) << order[1];
  EXPECT_NE(order[2].find("240 vectors"), std::string::npos) << order[2];
  EXPECT_EQ(order[3], "running the model");
}

TEST_F(CalibrateTest, MeasuresTheLossOnHeldOutText) {
  for (const Weighting weighting : {Weighting::kUniform, Weighting::kFisher}) {
    const auto calibration = calibrate(options({}, weighting));
    ASSERT_TRUE(calibration.ok()) << calibration.status().message();
    EXPECT_EQ(calibration->stats.n_held_out, 16U);
    const HeldOutLoss& loss = calibration->codebooks[0].codebook.origin.held_out;
    EXPECT_EQ(loss.n_tokens, 16U);
    double keys = 0;
    double learned = 0;
    for (const auto& tensor : calibration->codebooks[0].tensors) {
      keys += tensor.kind == KvKind::kKey ? tensor.held_out_error / 2 : 0;
      learned += tensor.kind == KvKind::kKey ? tensor.learning.relative_error / 2 : 0;
    }
    EXPECT_FLOAT_EQ(loss.keys, static_cast<float>(keys));
    EXPECT_GT(keys, learned);
    EXPECT_GT(loss.values, 0);
  }
}

TEST_F(CalibrateTest, NamesAnArchitectureWithoutGradients) {
  TinyModel tiny;
  tiny.with_experts = true;
  const auto calibration = calibrate(options(tiny, Weighting::kFisher));
  ASSERT_FALSE(calibration.ok());
  EXPECT_EQ(calibration.status().code(), StatusCode::kUnsupported);
}

TEST_F(CalibrateTest, RefusesGroupsThatDoNotDivideHeads) {
  CalibrationOptions chosen = options({}, Weighting::kUniform);
  chosen.configs[0].keys = {16, 4};
  const auto calibration = calibrate(chosen);
  ASSERT_FALSE(calibration.ok());
  EXPECT_EQ(calibration.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(calibration.status().message().find("head size 8"), std::string::npos)
      << calibration.status().message();
}

TEST_F(CalibrateTest, StopsWhenCancelled) {
  for (const Weighting weighting : {Weighting::kUniform, Weighting::kFisher}) {
    std::atomic<bool> cancel{true};
    const auto calibration = calibrate(options({}, weighting), {}, &cancel);
    ASSERT_FALSE(calibration.ok());
    EXPECT_EQ(calibration.status().code(), StatusCode::kCancelled);
  }
}

TEST_F(CalibrateTest, ParsesWeightings) {
  EXPECT_EQ(*parse_weighting("uniform"), Weighting::kUniform);
  EXPECT_EQ(*parse_weighting("fisher"), Weighting::kFisher);
  EXPECT_EQ(parse_weighting("Fisher").status().code(), StatusCode::kInvalidArgument);
}

KvRows some_rows(const std::vector<float>& rows, const std::vector<float>& gradients) {
  KvRows result;
  result.layer = 3;
  result.shape = {2, 4};
  result.n_tokens = rows.size() / 8;
  result.rows = rows.data();
  result.gradients = gradients.empty() ? nullptr : gradients.data();
  return result;
}

TEST(SampleCollectorTest, SumsSquaredGradientsOfAGroup) {
  SampleCollector samples({{2, 4}}, {});
  samples.begin_sequence(0, 2);
  const std::vector<float> rows(16, 1.0F);
  const std::vector<float> gradients = {1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 1, 0, 0, -2, 1e-20F, 0};
  ASSERT_TRUE(samples.add(some_rows(rows, gradients)).ok());
  const TensorSamples& tensor = samples.tensors().at({3, KvKind::kKey});
  EXPECT_EQ(tensor.learned.n_rows, 2U);
  EXPECT_EQ(tensor.learned.rows, rows);
  const std::vector<float> expected = {5, 25, 61, 113, 0, 1, 4, 1e-40F};
  EXPECT_EQ(tensor.learned.weights.at(2), expected);
}

// Groups of four sum the gradients anew: the sums of pairs are rounded already.
TEST(SampleCollectorTest, KeepsWeightsForEveryGroupDim) {
  SampleCollector samples({{2, 4}, {4, 4}, {2, 6}}, {{8, 8}});
  samples.begin_sequence(0, 1);
  const std::vector<float> rows(8, 1.0F);
  const std::vector<float> gradients = {1, 2, 3, 4, 5, 6, 7, 8};
  ASSERT_TRUE(samples.add(some_rows(rows, gradients)).ok());
  const auto& weights = samples.tensors().at({3, KvKind::kKey}).learned.weights;
  EXPECT_EQ(weights.size(), 2U);
  EXPECT_EQ(weights.at(2), (std::vector<float>{5, 25, 61, 113}));
  EXPECT_EQ(weights.at(4), (std::vector<float>{30, 174}));
}

// A held-out row must not reach learning, in whatever pieces the rows come.
TEST(SampleCollectorTest, HoldsRowsOut) {
  constexpr std::size_t kTokens = 64;
  SampleCollector samples({{2, 4}}, {});
  samples.begin_sequence(1, kTokens);  // the tenth sixteenth: tokens 36 to 39
  for (std::size_t first = 0; first < kTokens; first += 8) {
    std::vector<float> rows;
    std::vector<float> gradients;
    for (std::size_t t = first; t < first + 8; t++) {
      rows.insert(rows.end(), 8, static_cast<float>(t));
      gradients.insert(gradients.end(), 8, static_cast<float>(t));
    }
    KvRows piece = some_rows(rows, gradients);
    piece.first_token = first;
    ASSERT_TRUE(samples.add(piece).ok());
  }
  const TensorSamples& tensor = samples.tensors().at({3, KvKind::kKey});
  EXPECT_EQ(tensor.learned.n_rows, kTokens - 4);
  ASSERT_EQ(tensor.held_out.n_rows, 4U);
  for (std::size_t i = 0; i < 4; i++) {
    const auto token = static_cast<float>(36 + i);
    EXPECT_EQ(tensor.held_out.rows[i * 8], token);
    EXPECT_EQ(tensor.held_out.weights.at(2)[i * 4], 2 * token * token);
    const auto& learned = tensor.learned.rows;
    EXPECT_EQ(std::count(learned.begin(), learned.end(), token), 0) << token;
  }
}

// But for the first sixteenth: BOS has the same key everywhere, so it is never unseen.
TEST(SampleCollectorTest, HeldOutPartsCoverEveryPositionOnce) {
  for (const std::size_t n_tokens : {16U, 100U, 2048U}) {
    std::vector<int> n_times(n_tokens);
    for (std::size_t sequence = 0; sequence < 15; sequence++) {
      const TokenRange range = held_out_range(sequence, n_tokens);
      EXPECT_LE(range.size(), n_tokens / 16 + 1);
      for (std::size_t t = range.first; t < range.end; t++) {
        n_times[t]++;
      }
    }
    std::vector<int> expected(n_tokens, 1);
    std::fill_n(expected.begin(), n_tokens / 16, 0);
    EXPECT_EQ(n_times, expected);
  }
  EXPECT_EQ(held_out_range(0, 2).size(), 0U);
}

TEST(SampleCollectorTest, NamesLayerAndTokenOfBadRows) {
  SampleCollector samples({{2, 4}}, {});
  std::vector<float> rows(16, 1.0F);
  rows[9] = std::numeric_limits<float>::infinity();
  const Status status = samples.add(some_rows(rows, {}));
  EXPECT_EQ(status.code(), StatusCode::kCorrupt);
  EXPECT_NE(status.message().find("layer 3, key row of token 1, channel 1"), std::string::npos)
      << status.message();
}

}  // namespace
}  // namespace cqkv
