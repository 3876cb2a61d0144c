// The device under tiny random models of many architectures, through libllama: that a
// model without a codebook computes as on the CPU alone, that a coded cache holds the
// model's keys before rotation and its values, in the right layers and at the right
// positions, that logits follow from them, and that what cannot be coded is refused with
// a reason. Weights are random, so nothing is said about quality. Real models and programs
// are in tests/e2e, graphs made by hand in device_test.cpp.
#include <algorithm>
#include <cmath>

#include "device/device_fixture.h"
#include "device/model_fixture.h"
#include "support/codebooks.h"

namespace cqkv::device {
namespace {

using testing::MetadataKey;
using testing::ModelSpec;

using MetadataKeys = std::vector<MetadataKey>;

constexpr CodecSpec k1Bit{8, 8};
constexpr int kWindow = 32;  // of models with sliding windows

struct ModelCase {
  std::string name;
  ModelSpec spec;
  std::vector<int> cache_layers = {};  ///< Layers with an attention cache; empty: all.
  std::vector<int> unplaced = {};      ///< Layers in a cache that knows no positions.
  bool embeddings = false;             ///< Compare pooled embeddings instead of logits.
  std::string refused = {};            ///< Part of the reason why it cannot be coded.
  int n_caches = 1;
};

std::uint32_t u32(int value) {
  return static_cast<std::uint32_t>(value);
}

MetadataKeys operator+(MetadataKeys a, const MetadataKeys& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// Every second layer sees only the last kWindow tokens; so two caches.
MetadataKeys sliding_window() {
  return {{"attention.sliding_window", u32(kWindow)},
          {"attention.sliding_window_pattern", u32(2)},
          {"rope.freq_base_swa", 100.0F}};
}

MetadataKeys experts() {
  return {{"expert_count", u32(2)},
          {"expert_used_count", u32(2)},
          {"expert_shared_count", u32(1)},
          {"expert_feed_forward_length", u32(32)},
          {"expert_shared_feed_forward_length", u32(32)}};
}

MetadataKeys state_space(int inner, int n_heads, int n_groups) {
  return {{"ssm.conv_kernel", u32(4)},
          {"ssm.inner_size", u32(inner)},
          {"ssm.state_size", u32(16)},
          {"ssm.time_step_rank", u32(n_heads)},
          {"ssm.group_count", u32(n_groups)}};
}

MetadataKeys kv_heads(const std::vector<std::uint32_t>& per_layer) {
  return {{"attention.head_count_kv", per_layer}};
}

MetadataKeys sections(const std::vector<std::uint32_t>& sizes) {
  return {{"rope.dimension_sections", sizes}};
}

const std::vector<ModelCase> kCoded = {
    {"llama", {.architecture = "llama"}},
    {"mistral_shape", {.architecture = "llama", .n_heads = 4, .n_kv_heads = 1, .head_dim = 128}},
    {"llama3_factors", {.architecture = "llama", .rope_factor = 8.0F}},
    {"linear_rope", {.architecture = "llama", .keys = {{"rope.scaling.factor", 4.0F}}}},
    {"yarn",
     {.architecture = "llama",
      .keys = {{"rope.scaling.type", std::string("yarn")},
               {"rope.scaling.factor", 4.0F},
               {"rope.scaling.original_context_length", u32(64)}}}},
    {.name = "embeddings", .spec = {.architecture = "llama"}, .embeddings = true},
    {"qwen3_norms", {.architecture = "qwen3", .n_heads = 4, .n_kv_heads = 1, .head_dim = 64}},
    {.name = "gemma3_windows",
     .spec = {.architecture = "gemma3",
              .n_layers = 4,
              .n_heads = 2,
              .n_kv_heads = 1,
              .head_dim = 256,
              .keys = sliding_window()},
     .n_caches = 2},
    {"stablelm_partial_rope",
     {.architecture = "stablelm", .keys = {{"rope.dimension_count", u32(8)}}}},
    {"phi2_head_80",
     {.architecture = "phi2",
      .n_embd = 160,
      .n_heads = 2,
      .n_kv_heads = 2,
      .head_dim = 80,
      .keys = {{"rope.dimension_count", u32(32)}}}},
    {"gptneox_fused_qkv",
     {.architecture = "gptneox",
      .n_kv_heads = 4,
      .keys = {{"rope.dimension_count", u32(16)}, {"use_parallel_residual", true}}}},
    {"phi3_head_96_long_rope",
     {.architecture = "phi3",
      .n_embd = 192,
      .n_heads = 2,
      .n_kv_heads = 1,
      .head_dim = 96,
      .rope_factor = 4.0F,
      .keys = {{"rope.scaling.attn_factor", 1.25F}}}},
    {"glm4_half_rope",
     {.architecture = "glm4",
      .n_kv_heads = 1,
      .head_dim = 64,
      .keys = {{"rope.dimension_count", u32(32)}}}},
    {"smollm3_layers_without_rope", {.architecture = "smollm3", .n_layers = 5}},
    {.name = "cohere2_global_layers_without_rope",
     .spec = {.architecture = "cohere2",
              .n_layers = 4,
              .keys = sliding_window() + MetadataKeys{{"logit_scale", 0.5F}}},
     .unplaced = {1, 3},
     .n_caches = 2},
    {"exaone4", {.architecture = "exaone4"}},
    {.name = "gpt_oss_learned_sinks",
     .spec = {.architecture = "gpt-oss", .keys = sliding_window() + experts()},
     .n_caches = 2},
    {.name = "gemma2_softcap",
     .spec = {.architecture = "gemma2",
              .keys = sliding_window() + MetadataKeys{{"attn_logit_softcapping", 2.0F}}},
     .n_caches = 2},
    {.name = "gpt2_learned_positions",
     .spec = {.architecture = "gpt2", .n_kv_heads = 4},
     .unplaced = {0, 1}},
    {"lfm2_short_convolutions",
     {.architecture = "lfm2",
      .n_layers = 4,
      .keys = kv_heads({0, 2, 0, 2}) + MetadataKeys{{"shortconv.l_cache", u32(3)}}},
     {1, 3}},
    {"jamba_mamba",
     {.architecture = "jamba",
      .n_layers = 4,
      .keys = kv_heads({0, 2, 0, 2}) + state_space(256, 8, 1)},
     {1, 3},
     {1, 3}},
    {"falcon_h1_mamba2_in_each_layer",
     {.architecture = "falcon-h1", .keys = state_space(256, 4, 1)}},
    {"qwen3next_delta_net",
     {.architecture = "qwen3next",
      .n_layers = 4,
      .keys = experts() + state_space(64, 4, 2) +
              MetadataKeys{{"full_attention_interval", u32(2)}, {"rope.dimension_count", u32(8)}}},
     {1, 3}},
    {"qwen35_delta_net_sections",
     {.architecture = "qwen35",
      .n_layers = 4,
      .keys = state_space(64, 4, 2) + sections({3, 3, 2, 0}) +
              MetadataKeys{{"full_attention_interval", u32(2)}, {"rope.dimension_count", u32(16)}}},
     {1, 3}},
    {"qwen2vl_sections", {.architecture = "qwen2vl", .keys = sections({4, 6, 6, 0})}},
    {"qwen2vl_four_sections", {.architecture = "qwen2vl", .keys = sections({4, 4, 4, 4})}},
    {"qwen3vl_interleaved_sections", {.architecture = "qwen3vl", .keys = sections({8, 4, 4, 0})}},
};

const std::vector<ModelCase> kRefused = {
    // Layers 20 and 21 have no cache of their own.
    {.name = "gemma3n_shared_layers",
     .spec = {.architecture = "gemma3n",
              .n_layers = 22,
              .n_embd = 64,
              .n_heads = 2,
              .n_kv_heads = 1,
              .head_dim = 64,
              .q_norm = 0.25F,  // scores are not divided by the root of the head size
              .keys = sliding_window()},
     .refused = "read by another layer too",
     .n_caches = 2},
    {.name = "bloom_alibi", .spec = {.architecture = "bloom", .n_kv_heads = 4}, .refused = "ALiBi"},
    {.name = "mpt_alibi",
     .spec = {.architecture = "mpt", .n_kv_heads = 4, .keys = {{"attention.max_alibi_bias", 8.0F}}},
     .refused = "ALiBi"},
    {.name = "maincoder_norm_after_rope",
     .spec = {.architecture = "maincoder"},
     .refused = "follows the rotary embedding"},
    // Keys are a part without rotation and, behind it, one with it.
    {.name = "deepseek2_rotated_part",
     .spec = {.architecture = "deepseek2",
              .n_kv_heads = 4,
              .keys = experts() + MetadataKeys{{"attention.kv_lora_rank", u32(64)},
                                               {"attention.q_lora_rank", u32(32)},
                                               {"leading_dense_block_count", u32(1)},
                                               {"rope.dimension_count", u32(16)}}},
     .refused = "CONCAT"},
    {.name = "deepseek2_mla",
     .spec = {.architecture = "deepseek2",
              .n_kv_heads = 1,
              .head_dim = 80,
              .keys = experts() + MetadataKeys{{"attention.value_length", u32(64)},
                                               {"attention.key_length_mla", u32(48)},
                                               {"attention.value_length_mla", u32(32)},
                                               {"attention.kv_lora_rank", u32(64)},
                                               {"attention.q_lora_rank", u32(32)},
                                               {"leading_dense_block_count", u32(1)},
                                               {"rope.dimension_count", u32(16)}}},
     .refused = "CONCAT 'Kcur-0' follows the rotary embedding"},
};

/// No cache at all.
const std::vector<ModelCase> kEncoders = {
    {.name = "bert",
     .spec = {.architecture = "bert",
              .n_kv_heads = 4,
              .keys = {{"attention.causal", false}, {"tokenizer.ggml.token_type_count", u32(2)}}},
     .embeddings = true,
     .n_caches = 0},
};

std::string case_name(const ::testing::TestParamInfo<ModelCase>& info) {
  return info.param.name;
}

std::ostream& operator<<(std::ostream& out, const ModelCase& model) {
  return out << model.name;
}

// ---- What is compared ------------------------------------------------------

std::vector<float> evaluate(const ModelCase& model, RunOptions options) {
  options.embeddings = model.embeddings;
  take_log();
  ModelRun run(model.spec, options);
  if (!run.ok()) {
    ADD_FAILURE() << "no context: " << take_log();
    return {};
  }
  return run.evaluate();
}

RunOptions on_cpu(int n_ubatch = 128) {
  return {.on_device = false, .n_ubatch = n_ubatch};
}

RunOptions on_device(int n_ubatch = 128) {
  return {.n_ubatch = n_ubatch};
}

bool all_finite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
}

/// A codebook for the model, the same tensor for keys and values of all layers, but in bases in
/// every second one.
Codebook codebook_of(const ModelSpec& spec, const TensorCodebook& tensor) {
  Codebook codebook;
  codebook.origin.name = "of a tiny " + spec.architecture;
  codebook.origin.architecture = spec.architecture;
  codebook.layers.assign(static_cast<std::size_t>(spec.n_layers), {{tensor}, {tensor}});
  for (std::size_t layer = 1; layer < codebook.layers.size(); layer += 2) {
    codebook.layers[layer].k = {testing::with_basis(tensor, KvKind::kKey, layer)};
    codebook.layers[layer].v = {testing::with_basis(tensor, KvKind::kValue, layer)};
  }
  return codebook;
}

Codebook coarse_codebook(const ModelSpec& spec) {
  return codebook_of(spec, testing::random_tensor(k1Bit, spec.n_kv_heads, spec.head_dim, 5));
}

/// Keys and values of these models are below 12 in size.
Codebook fine_codebook(const ModelSpec& spec) {
  return codebook_of(spec, testing::grid_tensor(spec.n_kv_heads, spec.head_dim, 12.0F));
}

int count(const std::string& text, const std::string& part) {
  int n = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
    n++;
  }
  return n;
}

// ---- Without a fitting codebook --------------------------------------------

constexpr const char* kNoCodebook = "no codebook fits";

class PlainModels : public ::testing::TestWithParam<ModelCase> {};

TEST_P(PlainModels, ComputeAsOnTheCpu) {
  const ModelSpec other{.architecture = "llama", .n_kv_heads = 1, .head_dim = 16};
  use_codebooks({coarse_codebook(other)});
  const std::vector<float> got = evaluate(GetParam(), on_device());
  const std::string log = take_log();
  const std::vector<float> want = evaluate(GetParam(), on_cpu());
  ASSERT_FALSE(want.empty());
  ASSERT_TRUE(all_finite(want));
  EXPECT_EQ(got, want);
  EXPECT_EQ(count(log, kNoCodebook), GetParam().n_caches > 0 ? 1 : 0) << "one line a context:\n"
                                                                      << log;
}

INSTANTIATE_TEST_SUITE_P(Coded, PlainModels, ::testing::ValuesIn(kCoded), case_name);
INSTANTIATE_TEST_SUITE_P(Refused, PlainModels, ::testing::ValuesIn(kRefused), case_name);
INSTANTIATE_TEST_SUITE_P(Encoders, PlainModels, ::testing::ValuesIn(kEncoders), case_name);

// ---- With a codebook -------------------------------------------------------

/// Compares decoded rows with those that the model made, over the tokens that are still in
/// the cache. The step of the grid is 6e-3, so its error 1.7e-3 in rows of size 0.5 to 1.5;
/// differences of earlier layers add to that. A wrong rotation would give 1.
void expect_close(const std::map<int, std::vector<float>>& decoded,
                  const std::map<int, std::vector<float>>& made, KvKind kind, int layer) {
  ASSERT_GE(decoded.size(), static_cast<std::size_t>(kWindow));
  std::vector<float> got;
  std::vector<float> want;
  for (const auto& [token, row] : decoded) {
    got.insert(got.end(), row.begin(), row.end());
    want.insert(want.end(), made.at(token).begin(), made.at(token).end());
  }
  EXPECT_LT(relative_distance(got, want), 5e-3 * (1 + layer))
      << kv_kind_name(kind) << "s of layer " << layer;
}

class CodedModels : public ::testing::TestWithParam<ModelCase> {
 protected:
  static void expect_rows(const ModelRun& coded, const ModelRun& stock, const Codebook& codebook) {
    const ModelCase& model = GetParam();
    const CacheRows decoded = coded.decoded_rows(codebook, model.unplaced);
    for (int layer = 0; layer < model.spec.n_layers; layer++) {
      const auto& layers = model.cache_layers;
      const bool has_cache = layers.empty() || std::count(layers.begin(), layers.end(), layer) != 0;
      for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
        ASSERT_EQ(decoded.contains({kind, layer}), has_cache)
            << kv_kind_name(kind) << "s of layer " << layer;
        if (has_cache) {
          expect_close(decoded.at({kind, layer}), stock.watched_rows().at({kind, layer}), kind,
                       layer);
        }
      }
    }
  }
};

TEST_P(CodedModels, NearlyLosslessCodesGiveStockRowsAndLogits) {
  const ModelCase& model = GetParam();
  ModelRun stock(
      model.spec,
      {.on_device = false, .n_ubatch = 128, .embeddings = model.embeddings, .watch_rows = true});
  ASSERT_TRUE(stock.ok());
  const std::vector<float> want = stock.evaluate();

  const Codebook codebook = fine_codebook(model.spec);
  use_codebooks({codebook});
  take_log();
  ModelRun coded(model.spec, {.n_ubatch = 128, .embeddings = model.embeddings});
  const std::string log = take_log();
  ASSERT_TRUE(coded.ok()) << log;
  EXPECT_EQ(count(log, kNoCodebook), 0) << log;
  const std::vector<float> got = coded.evaluate();
  ASSERT_FALSE(got.empty()) << Backend::get().last_error();
  expect_rows(coded, stock, codebook);

  // Keys that are wrong, as after a wrong rotation, must show in the logits; those that
  // are right must not.
  Codebook wrong_keys = codebook;
  for (auto& layer : wrong_keys.layers) {
    layer.k = coarse_codebook(model.spec).layers.front().k;
  }
  use_codebooks({wrong_keys});
  const double control = relative_distance(evaluate(model, on_device()), want);
  EXPECT_GT(control, 0.1);
  EXPECT_LT(relative_distance(got, want), control / 10);
}

TEST_P(CodedModels, CoarseCodesDoNotDependOnTheBatch) {
  const ModelCase& model = GetParam();
  // Embeddings are pooled over one physical batch.
  const int small_batch = model.embeddings ? ModelRun::kPromptTokens : 16;
  use_codebooks({coarse_codebook(model.spec)});
  const std::vector<float> small = evaluate(model, on_device(small_batch));
  ASSERT_FALSE(small.empty()) << Backend::get().last_error();
  ASSERT_TRUE(all_finite(small));
  const std::vector<float> large = evaluate(model, on_device(128));
  // What the host's own kernels make of other batches; on some machines nothing.
  const double spread =
      relative_distance(evaluate(model, on_cpu(small_batch)), evaluate(model, on_cpu(128)));
  EXPECT_LE(relative_distance(small, large), spread);
  use_codebooks({});
  EXPECT_GT(relative_distance(large, evaluate(model, on_device(128))), 0.1) << "nothing was coded";
}

// The codes are poor, but every token is in the window: codes and 8-bit residual.
TEST_P(CodedModels, AWindowOverAllTokensGivesStockLogits) {
  const ModelCase& model = GetParam();
  if (!model.unplaced.empty()) {
    GTEST_SKIP() << "a cache that knows no positions has no window";
  }
  Backend::get().set_window(256, 0);
  use_codebooks({coarse_codebook(model.spec)});
  const std::vector<float> got = evaluate(model, on_device());
  Backend::get().set_window(-1, -1);
  // A residual of at most 4 in 127 steps: rows are off by 1e-2 of their size.
  EXPECT_LT(relative_distance(got, evaluate(model, on_cpu())), 5e-2);
}

INSTANTIATE_TEST_SUITE_P(Matrix, CodedModels, ::testing::ValuesIn(kCoded), case_name);

class RefusedModels : public ::testing::TestWithParam<ModelCase> {};

TEST_P(RefusedModels, GiveNoContextAndAReason) {
  use_codebooks({coarse_codebook(GetParam().spec)});
  take_log();
  const ModelRun run(GetParam().spec, on_device());
  const std::string log = take_log();
  EXPECT_FALSE(run.ok());
  EXPECT_NE(log.find(GetParam().refused), std::string::npos) << log;
  EXPECT_NE(Backend::get().last_error().find(GetParam().refused), std::string::npos)
      << Backend::get().last_error();
}

INSTANTIATE_TEST_SUITE_P(Matrix, RefusedModels, ::testing::ValuesIn(kRefused), case_name);

// Exact keys beside coded values, as images need them.
TEST(ExactKeys, ServeRotationsInSections) {
  int n_models = 0;
  for (const ModelCase& model : kCoded) {
    if (model.spec.architecture.find("vl") == std::string::npos) {
      continue;
    }
    n_models++;
    Codebook codebook = fine_codebook(model.spec);
    for (auto& layer : codebook.layers) {
      layer.k.clear();
    }
    use_codebooks({codebook});
    ModelRun coded(model.spec, on_device());
    ASSERT_TRUE(coded.ok()) << model.name << ": " << Backend::get().last_error();
    EXPECT_LT(relative_distance(coded.evaluate(), evaluate(model, on_cpu())), 5e-2) << model.name;
    const CacheRows values = coded.decoded_rows(codebook, {0, 1});
    EXPECT_EQ(values.size(), static_cast<std::size_t>(model.spec.n_layers)) << model.name;
    EXPECT_TRUE(values.contains({KvKind::kValue, 0})) << model.name;
  }
  EXPECT_EQ(n_models, 3);
}

// ---- Two models in one process ---------------------------------------------

const ModelSpec kTarget{.architecture = "llama"};
const ModelSpec kDraft{.architecture = "qwen3", .n_layers = 3, .n_kv_heads = 1, .head_dim = 128};

TEST(TwoModels, FindTheirCodebooks) {
  const Codebook target_book = coarse_codebook(kTarget);
  const Codebook draft_book = coarse_codebook(kDraft);
  use_codebooks({target_book, draft_book});
  ModelRun target(kTarget, on_device());
  ModelRun draft(kDraft, on_device());
  ASSERT_TRUE(target.ok());
  ASSERT_TRUE(draft.ok());
  ASSERT_FALSE(target.evaluate().empty());
  ASSERT_FALSE(draft.evaluate().empty());
  EXPECT_EQ(target.decoded_rows(target_book, {}).size(), 2U * kTarget.n_layers);
  EXPECT_EQ(target.decoded_rows(draft_book, {}).size(), 0U);
  EXPECT_EQ(draft.decoded_rows(draft_book, {}).size(), 2U * kDraft.n_layers);
  EXPECT_EQ(draft.decoded_rows(target_book, {}).size(), 0U);
}

TEST(TwoModels, WithoutACodebookTheDraftIsPlain) {
  const Codebook target_book = coarse_codebook(kTarget);
  use_codebooks({target_book});
  take_log();
  ModelRun target(kTarget, on_device());
  EXPECT_EQ(count(take_log(), kNoCodebook), 0);
  ModelRun draft(kDraft, on_device());
  EXPECT_EQ(count(take_log(), kNoCodebook), 1);
  ASSERT_TRUE(target.ok());
  ASSERT_TRUE(draft.ok());
  ASSERT_FALSE(target.evaluate().empty());
  EXPECT_EQ(target.decoded_rows(target_book, {}).size(), 2U * kTarget.n_layers);
  ModelRun stock(kDraft, on_cpu());
  EXPECT_EQ(draft.evaluate(), stock.evaluate());
}

}  // namespace
}  // namespace cqkv::device
