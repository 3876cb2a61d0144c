// ModelFile::load: the reading and checking, step by step; see model_file.h.
#include "model_pass/model_file.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

namespace cqkv {
namespace {

constexpr std::int64_t kMaxDimension = std::int64_t{1} << 24U;

// Reads one model; the first error is kept and later reads are skipped, so that the
// steps need no check after each key.
class Loader {
 public:
  Loader(const GgufFile& file, ModelFile& model) : file_(file), model_(model) {}

  Status load() {
    CQKV_RETURN_IF_ERROR(read_architecture());
    read_shape();
    CQKV_RETURN_IF_ERROR(status_);
    read_graph();
    read_windows();
    CQKV_RETURN_IF_ERROR(status_);
    read_rope();
    CQKV_RETURN_IF_ERROR(status_);
    read_tensors();
    return status_;
  }

 private:
  std::string key(const char* name) const { return model_.architecture + "." + name; }

  void fail(Status status) {
    if (status_.ok()) {
      status_ = std::move(status);
    }
  }

  void fail_unsupported(const std::string& what) {
    fail(unsupported(file_.path() + ": gradients of " + model_.architecture + " models " + what +
                     " are not implemented; use --weights uniform"));
  }

  Status read_architecture() {
    auto architecture = file_.string("general.architecture");
    if (!architecture.ok()) {
      return architecture.status();
    }
    model_.architecture = *architecture;
    if (!is("llama") && !is("qwen2") && !is("qwen3") && !is("gemma3")) {
      return unsupported(file_.path() +
                         ": gradients are implemented for the architectures llama, qwen2, qwen3 "
                         "and gemma3, this model is " +
                         *architecture + "; use --weights uniform");
    }
    return {};
  }

  bool is(std::string_view architecture) const { return model_.architecture == architecture; }

  std::size_t dimension(const char* name, std::optional<std::int64_t> fallback = {},
                        std::int64_t least = 1) {
    auto value = file_.find_uniform_integer(key(name));
    if (!value.ok()) {
      fail(value.status());
      return 1;
    }
    if (!value->has_value() && !fallback.has_value()) {
      fail(corrupt(file_.path() + ": key " + key(name) + " is missing"));
      return 1;
    }
    const std::int64_t n = value->has_value() ? **value : *fallback;
    if (n < least || n > kMaxDimension) {
      fail(corrupt(file_.path() + ": key " + key(name) + ": got " + std::to_string(n) + ", want " +
                   std::to_string(least) + " to " + std::to_string(kMaxDimension)));
      return 1;
    }
    return static_cast<std::size_t>(n);
  }

  double number(const char* name, double fallback) {
    auto value = file_.find_number(key(name));
    if (!value.ok()) {
      fail(value.status());
      return fallback;
    }
    return value->value_or(fallback);
  }

  void read_shape() {
    ModelShape& shape = model_.shape;
    shape.n_layers = dimension("block_count");
    shape.n_embd = dimension("embedding_length");
    shape.n_heads = dimension("attention.head_count");
    shape.n_kv_heads = dimension("attention.head_count_kv", shape.n_heads);
    shape.n_ff = dimension("feed_forward_length");
    const auto by_heads = static_cast<std::int64_t>(shape.n_embd / shape.n_heads);
    shape.head_dim = dimension("attention.key_length", by_heads);
    const std::size_t value_length = dimension("attention.value_length", by_heads);
    auto epsilon = file_.number(key("attention.layer_norm_rms_epsilon"));
    if (!epsilon.ok()) {
      fail(epsilon.status());
      return;
    }
    shape.rms_epsilon = static_cast<float>(*epsilon);
    auto n_experts = file_.find_integer(key("expert_count"));
    if (n_experts.ok() && n_experts->value_or(0) > 0) {
      fail_unsupported("with experts");
    }
    if (value_length != shape.head_dim) {
      fail_unsupported("whose keys and values differ in size");
    }
    if (shape.n_heads % shape.n_kv_heads != 0) {
      fail(corrupt(file_.path() + ": " + std::to_string(shape.n_heads) + " heads are no multiple " +
                   "of " + std::to_string(shape.n_kv_heads) + " KV heads"));
    }
  }

  // What the architectures compute differently, as libllama's graphs have it.
  void read_graph() {
    ModelShape& shape = model_.shape;
    std::size_t scaled_dim = shape.head_dim;
    if (is("gemma3")) {
      constexpr std::size_t kLayersOf27B = 62;  // libllama's way to tell it
      scaled_dim = shape.n_layers == kLayersOf27B ? shape.n_embd / shape.n_heads : shape.head_dim;
      shape.embedding_scale = std::sqrt(static_cast<float>(shape.n_embd));
      shape.post_norms = true;
      shape.gelu = true;
      if (number("final_logit_softcapping", 0.0) != 0.0) {
        fail_unsupported("with softcapped logits");
      }
    }
    shape.score_scale = 1.0F / std::sqrt(static_cast<float>(scaled_dim));
    shape.head_norms = is("qwen3") || is("gemma3");
  }

  // Sliding windows, as libllama's load_swa_pattern reads them: in all layers but the last
  // of each period.
  void read_windows() {
    if (!is("gemma3")) {
      return;
    }
    window_ = dimension("attention.sliding_window", 0, 0);
    if (!file_.find_integer(key("attention.sliding_window_pattern")).ok()) {
      fail_unsupported("with sliding windows listed layer by layer");
      return;
    }
    window_period_ = dimension("attention.sliding_window_pattern", 6, 0);
  }

  std::size_t window_of(std::size_t il) const {
    const bool global = window_period_ > 0 && il % window_period_ == window_period_ - 1;
    return global ? 0 : window_;
  }

  void read_rope() {
    // As libllama does it: llama_model_base::load_hparams and llama_context's constructor.
    RopeParams& rope = model_.rope;
    rope.mode = model_.architecture == "llama" ? RopeMode::kNormal : RopeMode::kNeox;
    rope.n_dims = static_cast<int>(
        dimension("rope.dimension_count", static_cast<std::int64_t>(model_.shape.head_dim)));
    if (static_cast<std::size_t>(rope.n_dims) != model_.shape.head_dim || rope.n_dims % 2 != 0) {
      fail(corrupt(file_.path() + ": RoPE rotates " + std::to_string(rope.n_dims) +
                   " channels, want all " + std::to_string(model_.shape.head_dim) +
                   " of a head, an even number"));
      return;
    }
    const auto n_train = static_cast<std::int64_t>(dimension("context_length", 1));
    rope.n_ctx_orig = static_cast<int>(dimension("rope.scaling.original_context_length", n_train));
    rope.freq_base = static_cast<float>(number("rope.freq_base", 10000.0));
    double factor = number("rope.scaling.factor", 0.0);
    factor = factor == 0.0 ? number("rope.scale_linear", 0.0) : factor;
    rope.freq_scale = factor == 0.0 ? 1.0F : 1.0F / static_cast<float>(factor);
    rope.attn_factor = static_cast<float>(number("rope.scaling.attn_factor", 1.0));
    read_rope_scaling();
    read_rope_factors();
    // Local layers have their own base, and libllama never scales their positions.
    model_.local_rope = rope;
    model_.local_rope.freq_base = static_cast<float>(number("rope.freq_base_swa", 10000.0));
    model_.local_rope.freq_scale = 1.0F;
  }

  void read_rope_scaling() {
    RopeParams& rope = model_.rope;
    auto type = file_.find_string(key("rope.scaling.type"));
    if (!type.ok()) {
      fail(type.status());
      return;
    }
    const std::string scaling = type->value_or("linear");
    if (scaling == "none") {
      rope.freq_scale = 1.0F;
    } else if (scaling == "yarn") {
      rope.ext_factor = 1.0F;
      // ggml lengthens by 1 + 0.1 ln(factor) itself; below factor 1 libllama undoes that.
      const float length = 1.0F - 0.1F * std::log(rope.freq_scale);
      rope.attn_factor *= rope.freq_scale < 1.0F ? 1.0F : 1.0F / length;
    } else if (scaling != "linear") {
      fail_unsupported("with RoPE scaling '" + scaling + "'");
    }
  }

  void read_rope_factors() {
    if (model_.architecture == "llama" && file_.has_tensor("rope_freqs.weight")) {
      model_.rope.freq_factors =
          vector("rope_freqs.weight", static_cast<std::size_t>(model_.rope.n_dims) / 2);
    }
  }

  GgufTensor tensor(const std::string& name) {
    auto found = file_.tensor(name);
    if (!found.ok()) {
      fail({StatusCode::kCorrupt, found.status().message()});
      return {};
    }
    const ggml_type_traits* traits = ggml_get_type_traits(found->type);
    if (found->type != GGML_TYPE_F32 && traits->to_float == nullptr) {
      fail_unsupported(std::string("with weights of type ") + ggml_type_name(found->type));
    }
    return *found;
  }

  GgufTensor matrix(const std::string& name, std::size_t n_in, std::size_t n_out) {
    GgufTensor found = tensor(name);
    if (status_.ok() && (found.n_columns != static_cast<std::int64_t>(n_in) ||
                         found.n_rows != static_cast<std::int64_t>(n_out))) {
      fail(corrupt(file_.path() + ": tensor " + name + ": got shape " +
                   std::to_string(found.n_columns) + " x " + std::to_string(found.n_rows) +
                   ", want " + std::to_string(n_in) + " x " + std::to_string(n_out)));
    }
    return found;
  }

  std::vector<float> vector(const std::string& name, std::size_t n) {
    const GgufTensor found = matrix(name, n, 1);
    std::vector<float> values(n);
    if (status_.ok()) {
      dequantize_rows(found, 0, 1, values.data());
    }
    return values;
  }

  LinearTensor linear(const std::string& name, std::size_t n_in, std::size_t n_out) {
    LinearTensor result;
    result.weight = matrix(name + ".weight", n_in, n_out);
    if (file_.has_tensor(name + ".bias")) {
      result.bias = vector(name + ".bias", n_out);
    }
    if (file_.has_tensor(name + ".scale")) {
      fail_unsupported("with scaled weights (" + name + ".scale)");
    }
    return result;
  }

  LayerTensors layer(std::size_t il) {
    const ModelShape& shape = model_.shape;
    const std::string prefix = "blk." + std::to_string(il) + ".";
    if (file_.has_tensor(prefix + "attn_qkv.weight")) {
      fail_unsupported("with fused attn_qkv weights");
    }
    LayerTensors layer;
    layer.attn_norm = vector(prefix + "attn_norm.weight", shape.n_embd);
    layer.ffn_norm = vector(prefix + "ffn_norm.weight", shape.n_embd);
    layer.q = linear(prefix + "attn_q", shape.n_embd, shape.n_query_channels());
    layer.k = linear(prefix + "attn_k", shape.n_embd, shape.n_kv_channels());
    layer.v = linear(prefix + "attn_v", shape.n_embd, shape.n_kv_channels());
    layer.o = linear(prefix + "attn_output", shape.n_query_channels(), shape.n_embd);
    layer.gate = linear(prefix + "ffn_gate", shape.n_embd, shape.n_ff);
    layer.up = linear(prefix + "ffn_up", shape.n_embd, shape.n_ff);
    layer.down = linear(prefix + "ffn_down", shape.n_ff, shape.n_embd);
    if (shape.head_norms) {
      layer.q_norm = vector(prefix + "attn_q_norm.weight", shape.head_dim);
      layer.k_norm = vector(prefix + "attn_k_norm.weight", shape.head_dim);
    }
    if (shape.post_norms) {
      layer.attn_post_norm = vector(prefix + "post_attention_norm.weight", shape.n_embd);
      layer.ffn_post_norm = vector(prefix + "post_ffw_norm.weight", shape.n_embd);
    }
    layer.window = window_of(il);
    return layer;
  }

  void read_tensors() {
    ModelShape& shape = model_.shape;
    model_.embedding = tensor("token_embd.weight");
    if (!status_.ok()) {
      return;
    }
    shape.n_vocab = static_cast<std::size_t>(model_.embedding.n_rows);
    model_.embedding = matrix("token_embd.weight", shape.n_embd, shape.n_vocab);
    model_.output_norm = vector("output_norm.weight", shape.n_embd);
    if (file_.has_tensor("output.weight")) {
      model_.output = linear("output", shape.n_embd, shape.n_vocab);
    } else {
      model_.output.weight = model_.embedding;
    }
    for (std::size_t il = 0; il < shape.n_layers && status_.ok(); il++) {
      model_.layers.push_back(layer(il));
    }
  }

  const GgufFile& file_;
  ModelFile& model_;
  Status status_;
  std::size_t window_ = 0;         // 0: no layer has one
  std::size_t window_period_ = 0;  // 0: all layers have it
};

}  // namespace

Result<ModelFile> ModelFile::load(const std::string& path) {
  auto file = GgufFile::open(path);
  if (!file.ok()) {
    return file.status();
  }
  ModelFile model;
  model.file = std::make_unique<GgufFile>(*std::move(file));
  CQKV_RETURN_IF_ERROR(Loader(*model.file, model).load());
  return model;
}

void dequantize_rows(const GgufTensor& tensor, std::size_t first, std::size_t n_rows, float* out) {
  const std::size_t row_bytes = ggml_row_size(tensor.type, tensor.n_columns);
  const char* data = static_cast<const char*>(tensor.data) + first * row_bytes;
  const auto n = static_cast<std::int64_t>(n_rows) * tensor.n_columns;
  if (tensor.type == GGML_TYPE_F32) {
    std::memcpy(out, data, static_cast<std::size_t>(n) * sizeof(float));
  } else {
    ggml_get_type_traits(tensor.type)->to_float(data, out, n);
  }
}

}  // namespace cqkv
