// The whole recipe on the tiny model, and the collector of rows and weights.
#include "calibration/calibrate.h"

#include <atomic>
#include <fstream>
#include <limits>

#include <gtest/gtest.h>

#include "calibration/samples.h"
#include "calibration/tiny_model.h"

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
    result.key_spec = {4, 4};
    result.value_spec = {8, 3};
    result.weighting = weighting;
    result.max_iterations = 5;
    return result;
  }
};

void check_codebook(const Calibration& calibration, const std::string& weighting) {
  const Codebook& codebook = calibration.codebook;
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
  EXPECT_EQ(calibration.stats.tensors.size(), 4U);
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
    const Codebook& codebook = calibration->codebook;
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
  EXPECT_EQ(one->codebook.identity(), three->codebook.identity());
}

TEST_F(CalibrateTest, KeepsExactTensorsOut) {
  CalibrationOptions chosen = options({}, Weighting::kUniform);
  chosen.key_spec = {};
  const auto calibration = calibrate(chosen);
  ASSERT_TRUE(calibration.ok()) << calibration.status().message();
  EXPECT_EQ(calibration->codebook.layers[0].get(KvKind::kKey), nullptr);
  EXPECT_NE(calibration->codebook.layers[0].get(KvKind::kValue), nullptr);
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
  chosen.key_spec = {16, 4};
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
  SampleCollector samples({2, 4}, {}, 2);
  const std::vector<float> rows(16, 1.0F);
  const std::vector<float> gradients = {1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 1, 0, 0, -2, 1e-20F, 0};
  ASSERT_TRUE(samples.add(some_rows(rows, gradients)).ok());
  const TensorSamples& tensor = samples.tensors().at({3, KvKind::kKey});
  EXPECT_EQ(tensor.n_rows, 2U);
  EXPECT_EQ(tensor.rows, rows);
  const std::vector<float> expected = {5, 25, 61, 113, 0, 1, 4, 1e-40F};
  EXPECT_EQ(tensor.weights, expected);
}

TEST(SampleCollectorTest, NamesLayerAndTokenOfBadRows) {
  SampleCollector samples({2, 4}, {}, 2);
  std::vector<float> rows(16, 1.0F);
  rows[9] = std::numeric_limits<float>::infinity();
  const Status status = samples.add(some_rows(rows, {}));
  EXPECT_EQ(status.code(), StatusCode::kCorrupt);
  EXPECT_NE(status.message().find("layer 3, key row of token 1, channel 1"), std::string::npos)
      << status.message();
}

}  // namespace
}  // namespace cqkv
