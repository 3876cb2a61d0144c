// Writing the tiny model with ggml's gguf writer; see tiny_model.h.
#include "model_pass/tiny_model.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <set>
#include <system_error>

#include <gtest/gtest.h>
#include <unistd.h>

#include "core/rng.h"
#include "llama/handles.h"

namespace cqkv::testing {
namespace {

class Writer {
 public:
  explicit Writer(const TinyModel& model)
      : model_(model), gguf_(gguf_init_empty()), rng_(model.seed) {
    const ggml_init_params params{std::size_t{64} << 20U, nullptr, false};
    tensors_.reset(ggml_init(params));
  }

  void write(const std::string& path) {
    write_keys();
    write_vocabulary();
    write_tensors();
    ASSERT_TRUE(gguf_write_to_file(gguf_.get(), path.c_str(), false));
  }

 private:
  std::string key(const char* name) const { return model_.architecture + "." + name; }

  void integer(const char* name, int value) {
    gguf_set_val_u32(gguf_.get(), key(name).c_str(), static_cast<std::uint32_t>(value));
  }

  void write_keys() {
    gguf_set_val_str(gguf_.get(), "general.architecture", model_.architecture.c_str());
    gguf_set_val_str(gguf_.get(), "general.name", "tiny");
    integer("block_count", model_.n_layers);
    integer("context_length", 256);
    integer("embedding_length", model_.n_embd);
    integer("feed_forward_length", model_.n_ff);
    integer("attention.head_count", model_.n_heads);
    integer("attention.head_count_kv", model_.n_kv_heads);
    integer("rope.dimension_count", model_.head_dim);
    if (model_.head_dim * model_.n_heads != model_.n_embd) {
      integer("attention.key_length", model_.head_dim);
      integer("attention.value_length", model_.head_dim);
    }
    gguf_set_val_f32(gguf_.get(), key("attention.layer_norm_rms_epsilon").c_str(), 1e-5F);
    gguf_set_val_f32(gguf_.get(), key("rope.freq_base").c_str(), 1000.0F);
    if (!model_.rope_sections.empty()) {
      gguf_set_arr_data(gguf_.get(), key("rope.dimension_sections").c_str(), GGUF_TYPE_INT32,
                        model_.rope_sections.data(), model_.rope_sections.size());
    }
    if (!model_.rope_scaling.empty()) {
      gguf_set_val_str(gguf_.get(), key("rope.scaling.type").c_str(), model_.rope_scaling.c_str());
      integer("rope.scaling.original_context_length", 64);
    }
    if (model_.rope_factor != 0.0F) {
      gguf_set_val_f32(gguf_.get(), key("rope.scaling.factor").c_str(), model_.rope_factor);
    }
    write_windows();
    if (model_.logit_softcap != 0.0F) {
      gguf_set_val_f32(gguf_.get(), key("final_logit_softcapping").c_str(), model_.logit_softcap);
    }
    if (model_.with_experts) {
      integer("expert_count", 4);
      integer("expert_used_count", 2);
    }
  }

  void write_windows() {
    if (model_.window != 0) {
      integer("attention.sliding_window", model_.window);
    }
    const char* period = "attention.sliding_window_pattern";
    if (model_.listed_windows) {
      const std::vector<std::uint32_t> all(static_cast<std::size_t>(model_.n_layers), 1);
      gguf_set_arr_data(gguf_.get(), key(period).c_str(), GGUF_TYPE_UINT32, all.data(), all.size());
    } else if (model_.window_period != 0) {
      integer(period, model_.window_period);
    }
  }

  void write_vocabulary() {
    std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
    std::vector<std::int32_t> types = {2, 3, 3};
    for (int byte = 0; byte < 256; byte++) {
      char text[8];
      std::snprintf(text, sizeof(text), "<0x%02X>", static_cast<unsigned>(byte));
      tokens.emplace_back(text);
      types.push_back(6);
    }
    tokens.emplace_back("\xE2\x96\x81");  // the space of SentencePiece
    types.push_back(1);
    std::vector<const char*> pointers;
    std::vector<float> scores(tokens.size(), 0.0F);
    for (const auto& token : tokens) {
      pointers.push_back(token.c_str());
    }
    gguf_set_val_str(gguf_.get(), "tokenizer.ggml.model", "llama");
    gguf_set_arr_str(gguf_.get(), "tokenizer.ggml.tokens", pointers.data(), pointers.size());
    gguf_set_arr_data(gguf_.get(), "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores.data(),
                      scores.size());
    gguf_set_arr_data(gguf_.get(), "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types.data(),
                      types.size());
    gguf_set_val_u32(gguf_.get(), "tokenizer.ggml.bos_token_id", 1);
    gguf_set_val_u32(gguf_.get(), "tokenizer.ggml.eos_token_id", 2);
    gguf_set_val_u32(gguf_.get(), "tokenizer.ggml.unknown_token_id", 0);
    gguf_set_val_bool(gguf_.get(), "tokenizer.ggml.add_bos_token", model_.add_bos);
    gguf_set_val_bool(gguf_.get(), "tokenizer.ggml.add_space_prefix", false);
    if (!model_.chat_template.empty()) {
      gguf_set_val_str(gguf_.get(), "tokenizer.chat_template", model_.chat_template.c_str());
    }
  }

  float* tensor(const std::string& name, int n_columns, int n_rows, float mean, float deviation) {
    ggml_tensor* tensor =
        n_rows == 0 ? ggml_new_tensor_1d(tensors_.get(), GGML_TYPE_F32, n_columns)
                    : ggml_new_tensor_2d(tensors_.get(), GGML_TYPE_F32, n_columns, n_rows);
    ggml_set_name(tensor, name.c_str());
    auto* data = static_cast<float*>(tensor->data);
    for (std::int64_t i = 0; i < ggml_nelements(tensor); i++) {
      data[i] = mean + deviation * static_cast<float>(rng_.normal());
    }
    if (name != model_.left_out) {
      gguf_add_tensor(gguf_.get(), tensor);
    }
    return data;
  }

  float* linear(const std::string& name, int n_in, int n_out, bool bias) {
    float* weight =
        tensor(name + ".weight", n_in, n_out, 0.0F, 1.5F / std::sqrt(static_cast<float>(n_in)));
    if (bias) {
      tensor(name + ".bias", n_out, 0, 0.0F, 0.5F);
    }
    return weight;
  }

  void write_tensors() {
    const int n_q = model_.n_heads * model_.head_dim;
    const int n_kv = model_.n_kv_heads * model_.head_dim;
    tensor("token_embd.weight", model_.n_embd, TinyModel::kVocab, 0.0F, 0.5F);
    tensor("output_norm.weight", model_.n_embd, 0, 1.0F, 0.2F);
    if (!model_.tied_output) {
      tensor("output.weight", model_.n_embd, TinyModel::kVocab, 0.0F, 0.3F);
    }
    if (model_.freq_factors) {
      tensor("rope_freqs.weight", model_.head_dim / 2, 0, 2.0F, 0.3F);
    }
    for (int il = 0; il < model_.n_layers; il++) {
      const std::string prefix = "blk." + std::to_string(il) + ".";
      tensor(prefix + "attn_norm.weight", model_.n_embd, 0, 1.0F, 0.2F);
      tensor(prefix + "ffn_norm.weight", model_.n_embd, 0, 1.0F, 0.2F);
      linear(prefix + "attn_q", model_.n_embd, n_q, model_.biases);
      float* keys = linear(prefix + "attn_k", model_.n_embd, n_kv, model_.biases);
      if (il == 1 && model_.nan_in_layer_1 != 0.0F) {
        keys[5] = std::numeric_limits<float>::quiet_NaN();
      }
      linear(prefix + "attn_v", model_.n_embd, n_kv, model_.biases);
      write_norms(prefix);
      linear(prefix + "attn_output", n_q, model_.n_embd, false);
      linear(prefix + "ffn_gate", model_.n_embd, model_.n_ff, false);
      linear(prefix + "ffn_up", model_.n_embd, model_.n_ff, false);
      linear(prefix + "ffn_down", model_.n_ff + (il == 1 ? model_.wrong_columns : 0), model_.n_embd,
             false);
    }
  }

  // The norms that not all architectures have.
  void write_norms(const std::string& prefix) {
    if (model_.has_head_norms()) {
      tensor(prefix + "attn_q_norm.weight", model_.head_dim, 0, 1.0F, 0.2F);
      tensor(prefix + "attn_k_norm.weight", model_.head_dim, 0, 1.0F, 0.2F);
    }
    if (model_.has_post_norms()) {
      tensor(prefix + "post_attention_norm.weight", model_.n_embd, 0, 1.0F, 0.2F);
      tensor(prefix + "post_ffw_norm.weight", model_.n_embd, 0, 1.0F, 0.2F);
    }
  }

  const TinyModel& model_;
  GgufContext gguf_;
  GgmlContext tensors_;
  Rng rng_;
};

}  // namespace

namespace {

// Removes the folders of all tests when the program ends.
struct Folders {
  Folders() = default;
  Folders(const Folders&) = delete;
  Folders& operator=(const Folders&) = delete;

  ~Folders() {
    std::error_code ignored;
    for (const auto& path : paths) {
      std::filesystem::remove_all(path, ignored);
    }
  }

  std::set<std::filesystem::path> paths;
};

}  // namespace

std::filesystem::path temporary_folder() {
  const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
  const auto folder =
      std::filesystem::temp_directory_path() /
      ("cqkv_" + std::to_string(getpid()) + "_" + test->test_suite_name() + "_" + test->name());
  static Folders folders;
  folders.paths.insert(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

TinyModel TinyModel::qwen3() {
  TinyModel tiny;
  tiny.architecture = "qwen3";
  tiny.head_dim = 16;
  tiny.tied_output = false;
  return tiny;
}

TinyModel TinyModel::gemma3() {
  TinyModel tiny;
  tiny.architecture = "gemma3";
  tiny.n_layers = 3;
  tiny.n_kv_heads = 1;
  tiny.head_dim = 16;
  tiny.window = 5;
  tiny.window_period = 2;
  return tiny;
}

std::string TinyModel::write(const std::string& name) const {
  const std::string path = (temporary_folder() / name).string();
  Writer(*this).write(path);
  return path;
}

std::vector<Token> random_tokens(std::size_t n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<Token> tokens = {1};
  while (tokens.size() < n) {
    tokens.push_back(static_cast<Token>(3 + rng.below(256)));
  }
  return tokens;
}

}  // namespace cqkv::testing
