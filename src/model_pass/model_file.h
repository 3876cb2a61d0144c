// The weights and hyperparameters of a model file of the architectures that the
// gradient pass knows (llama, qwen2, qwen3, gemma3), as it needs them: checked, mapped,
// not yet dequantized.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "cqkv/status.h"

#include "model_pass/gguf_file.h"
#include "rope/rope.h"

namespace cqkv {

/// Sizes, and what is computed between the products, the same in all layers.
struct ModelShape {
  std::size_t n_layers = 0;
  std::size_t n_embd = 0;
  std::size_t n_heads = 0;
  std::size_t n_kv_heads = 0;
  std::size_t head_dim = 0;
  std::size_t n_ff = 0;
  std::size_t n_vocab = 0;
  float rms_epsilon = 0.0F;
  float embedding_scale = 1.0F;  ///< Of a token's row before the first layer.
  float score_scale = 1.0F;      ///< Of query-key products.
  bool head_norms = false;       ///< RMS norms over each head of queries and keys, before RoPE.
  bool post_norms = false;  ///< RMS norms of what attention and feed-forward add to the residual.
  bool gelu = false;        ///< The feed-forward's gate is GELU, not SiLU.

  std::size_t n_query_channels() const { return n_heads * head_dim; }

  std::size_t n_kv_channels() const { return n_kv_heads * head_dim; }
};

/// y = W x + b; W is [n_out rows, n_in columns] in the file.
struct LinearTensor {
  GgufTensor weight;
  std::vector<float> bias;  ///< Empty or n_out.

  std::size_t n_in() const { return static_cast<std::size_t>(weight.n_columns); }

  std::size_t n_out() const { return static_cast<std::size_t>(weight.n_rows); }
};

struct LayerTensors {
  std::vector<float> attn_norm;
  std::vector<float> ffn_norm;
  std::vector<float> q_norm, k_norm;                 ///< [head_dim], or empty: no head_norms.
  std::vector<float> attn_post_norm, ffn_post_norm;  ///< Or empty: no post_norms.
  LinearTensor q, k, v, o;
  LinearTensor gate, up, down;
  std::size_t window = 0;  ///< Tokens that a query sees, itself included; 0: all before it.

  bool local() const { return window > 0; }
};

/// Const after load.
struct ModelFile {
  std::string architecture;
  ModelShape shape;
  RopeParams rope;
  RopeParams local_rope;  ///< Of local layers.
  GgufTensor embedding;
  std::vector<LayerTensors> layers;
  std::vector<float> output_norm;
  LinearTensor output;  ///< The embedding again if the file has no output.weight.
  std::unique_ptr<GgufFile> file;

  /// @return the errors of GgufFile::open; kUnsupported, naming the architecture and
  ///   `--weights uniform`, for anything but dense llama, qwen2, qwen3 and gemma3; kCorrupt
  ///   for a missing tensor or a wrong shape (got, want).
  static Result<ModelFile> load(const std::string& path);
};

/// Rows [first, first + n_rows) of a tensor as f32. The type was checked at load.
void dequantize_rows(const GgufTensor& tensor, std::size_t first, std::size_t n_rows, float* out);

}  // namespace cqkv
