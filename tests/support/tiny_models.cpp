// See tiny_models.h.
#include "support/tiny_models.h"

#include <cmath>
#include <string_view>

#include "core/hash.h"
#include "core/rng.h"

namespace cqkv::testing {
namespace {

void set_key(gguf_context* gguf, const char* key, std::uint32_t value) {
  gguf_set_val_u32(gguf, key, value);
}

void set_key(gguf_context* gguf, const char* key, float value) {
  gguf_set_val_f32(gguf, key, value);
}

void set_key(gguf_context* gguf, const char* key, bool value) {
  gguf_set_val_bool(gguf, key, value);
}

void set_key(gguf_context* gguf, const char* key, const std::string& value) {
  gguf_set_val_str(gguf, key, value.c_str());
}

void set_key(gguf_context* gguf, const char* key, const std::vector<std::uint32_t>& value) {
  gguf_set_arr_data(gguf, key, GGUF_TYPE_UINT32, value.data(), value.size());
}

GgufContext metadata(const ModelSpec& spec) {
  GgufContext gguf(gguf_init_empty());
  gguf_set_val_str(gguf.get(), "general.architecture", spec.architecture.c_str());
  gguf_set_val_str(gguf.get(), "tokenizer.ggml.model", "none");
  const auto number = [](int value) { return static_cast<std::uint32_t>(value); };
  std::vector<MetadataKey> keys = {
      {"vocab_size", number(ModelSpec::kVocab)},
      {"block_count", number(spec.n_layers)},
      {"context_length", number(256)},
      {"embedding_length", number(spec.n_embd)},
      {"feed_forward_length", number(spec.n_ff)},
      {"attention.head_count", number(spec.n_heads)},
      {"attention.head_count_kv", number(spec.n_kv_heads)},
      {"attention.key_length", number(spec.head_dim)},
      {"attention.value_length", number(spec.head_dim)},
      {"attention.layer_norm_epsilon", 1e-5F},
      {"attention.layer_norm_rms_epsilon", 1e-5F},
      {"rope.freq_base", 1000.0F},
  };
  keys.insert(keys.end(), spec.keys.begin(), spec.keys.end());
  for (const auto& key : keys) {
    const std::string prefix = key.name.starts_with("tokenizer.") ? "" : spec.architecture + ".";
    const std::string name = prefix + key.name;
    std::visit([&](const auto& value) { set_key(gguf.get(), name.c_str(), value); }, key.value);
  }
  return gguf;
}

struct Normal {
  float mean;
  float deviation;
};

// Keeps activations of size about 1, attention neither flat nor one-hot, and what does not
// come from attention small, so that logits depend on what is in the cache.
Normal distribution_of(const ModelSpec& spec, const ggml_tensor* tensor) {
  const std::string_view name(tensor->name);
  const auto has = [name](const char* part) { return name.find(part) != std::string_view::npos; };
  if (has("attn_q_norm")) {
    return {spec.q_norm, 0.2F * spec.q_norm};
  }
  if ((has("norm") && !name.ends_with("bias")) || name.ends_with("scale")) {
    return {1.0F, 0.2F};
  }
  if (has("ssm_a")) {
    return {-1.0F, 0.2F};  // decay of a state
  }
  if (name.ends_with("bias") || has("token_embd") || has("position_embd") || has("token_types")) {
    return {0.0F, 0.3F};
  }
  if (ggml_n_dims(tensor) == 1) {
    return {0.0F, 0.5F};
  }
  const bool aside = has("ffn_down") || has("ssm_out") || has("shortconv.out_proj") || has("altup");
  const float gain = aside ? 0.5F : 1.5F;
  return {0.0F, gain / std::sqrt(static_cast<float>(tensor->ne[0]))};
}

void fill(ggml_tensor* tensor, void* model_spec) {
  const auto& spec = *static_cast<const ModelSpec*>(model_spec);
  const std::string_view name(tensor->name);
  std::vector<float> values(static_cast<std::size_t>(ggml_nelements(tensor)));
  if (name.starts_with("rope_f")) {  // rope_freqs, rope_factors_long, rope_factors_short
    for (std::size_t i = 0; i < values.size(); i++) {
      values[i] = 1.0F + (spec.rope_factor - 1.0F) * static_cast<float>(i) /
                             static_cast<float>(values.size());
    }
  } else {
    const Normal normal = distribution_of(spec, tensor);
    Rng rng(spec.seed, hash_bytes(name.data(), name.size()));
    for (auto& value : values) {
      value = normal.mean + normal.deviation * static_cast<float>(rng.normal());
    }
  }
  ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
}

}  // namespace

LlamaModel make_model(const ModelSpec& spec, ggml_backend_dev_t device) {
  const GgufContext gguf = metadata(spec);
  llama_model_params params = llama_model_default_params();
  ggml_backend_dev_t devices[] = {device, nullptr};
  params.devices = devices;
  params.n_gpu_layers = device == nullptr ? 0 : 99;
  params.progress_callback = [](float, void*) { return true; };  // the default prints dots
  ModelSpec copy = spec;
  return LlamaModel(llama_model_init_from_user(gguf.get(), fill, &copy, params));
}

}  // namespace cqkv::testing
