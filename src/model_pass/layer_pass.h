// One transformer layer (RMS norm, attention, RMS norm, gated feed-forward, and the
// further norms of some architectures) over a whole sequence, forwards and backwards to
// its input, keys and values. Loss, embedding and the loop over layers are gradient.h's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "cqkv/codebook.h"

#include "core/parallel.h"
#include "model_pass/attention_pass.h"
#include "model_pass/dense.h"
#include "model_pass/model_file.h"
#include "model_pass/rope_angles.h"
#include "model_pass/weights.h"

namespace cqkv {

/// What the way back needs of the way forwards, all [n_tokens, ...] f32.
struct Activations {
  dense::Buffer queries;  ///< After RoPE.
  dense::Buffer keys;     ///< Before RoPE.
  dense::Buffer values;
  dense::Buffer attention;  ///< [n_heads, head_dim] a token, before the output projection.
  dense::Buffer lse;        ///< [n_heads, n_tokens]
  dense::Buffer middle;     ///< Between attention and feed-forward.
  dense::Buffer gate, up;   ///< Overwritten by the way back.
  dense::Buffer coded_keys, coded_values;  ///< What codes say of them; only if coded.
  dense::Buffer raw_queries, raw_keys;     ///< Before their norm; only with head_norms.
  dense::Buffer attn_out, ffn_out;         ///< Before their norm; only with post_norms.

  void resize(const ModelShape& shape, std::size_t n_tokens);

  /// Floats that resize allocates, and coding.
  static std::size_t n_floats(const ModelShape& shape, std::size_t n_tokens, bool coded);
};

/// Added to keys (after their norm, before RoPE) and values of a layer: for finite differences.
struct KvOffset {
  const float* keys = nullptr;  ///< [n_tokens, kv channels] or nullptr.
  const float* values = nullptr;
};

/// How far keys and values of a layer are coded; nullptr: they are exact.
struct KvCoding {
  const TensorCodebook* keys = nullptr;
  const TensorCodebook* values = nullptr;

  bool any() const { return keys != nullptr || values != nullptr; }
};

/// Owns scratch memory and the packed weights of the layer in work; one call at a time.
class LayerPass {
 public:
  LayerPass(const ModelShape& shape, const dense::Table& table, ThreadParallelFor& parallel)
      : shape_(shape),
        table_(table),
        parallel_(parallel),
        attention_(table, parallel),
        scratch_(static_cast<std::size_t>(parallel.n_threads())) {}

  /// Runs a layer on `input` [n_tokens, n_embd].
  ///
  /// @param coding  With use_far_gradients: queries that do not read a token exactly read its
  /// codes.
  /// @param output  [n_tokens, n_embd], or nullptr if only the activations are wanted.
  void forward(const LayerTensors& layer, const RopeAngles& angles, std::size_t n_tokens,
               const float* input, const KvOffset& offset, const KvCoding& coding,
               Activations& activations, float* output);

  /// @param gradient  In: of the loss by the layer's output; out: by its input, unless
  ///   `last`, when nobody needs it. [n_tokens, n_embd]
  /// After it, key_gradients() are by keys before RoPE, value_gradients() by values: the far ones
  /// (FarGradients) if use_far_gradients was called, else the whole.
  void backward(const LayerTensors& layer, const RopeAngles& angles, std::size_t n_tokens,
                const float* input, Activations& activations, bool last, float* gradient);

  /// From now on only gradients through queries that read codes count. What goes on to the layer's
  /// input is always the whole gradient.
  void use_far_gradients(const ExactTokens& exact) { exact_ = exact; }

  const float* key_gradients() const { return exact_ ? far_keys_.data() : key_gradients_.data(); }

  const float* value_gradients() const {
    return exact_ ? far_values_.data() : value_gradients_.data();
  }

 private:
  // Of one thread.
  struct Scratch {
    dense::Buffer norm;    // [kRows, n_embd]
    dense::Buffer hidden;  // [kRows, n_ff]
    dense::Buffer by_raw;  // [kRows, the widest norm's row], the gradient behind a norm
  };

  struct Rows;

  // A product that a norm may follow.
  struct NormedLinear {
    const dense::Packed& weights;
    const std::vector<float>& bias;
    const std::vector<float>& norm;  // empty: none
    dense::Buffer& raw;              // what goes into the norm, kept for the way back
  };

  void norm(const std::vector<float>& weight, const float* in, std::size_t n_rows,
            float* out) const;
  void norm_back(const std::vector<float>& weight, const float* in, const float* gradient,
                 std::size_t n_rows, float* in_gradient) const;
  void normed_linear(const NormedLinear& linear, const Rows& rows, const float* in,
                     float* out) const;
  const float* behind_norm(const std::vector<float>& weight, const float* in, const float* gradient,
                           std::size_t n_rows, Scratch& scratch) const;
  void project(const LayerTensors& layer, const RopeAngles& angles, const Rows& rows,
               const float* input, const KvOffset& offset, Activations& activations,
               Scratch& scratch) const;
  void feed_forward(const LayerTensors& layer, const Rows& rows, const float* input,
                    Activations& activations, float* output, Scratch& scratch) const;
  void feed_forward_back(const LayerTensors& layer, const Rows& rows, Activations& activations,
                         float* gradient, Scratch& scratch);
  void rotate_back(const RopeAngles& angles, const Rows& rows);
  void project_back(const LayerTensors& layer, const Rows& rows, const float* input,
                    const Activations& activations, float* gradient, Scratch& scratch) const;
  void rotate_keys(const RopeAngles& angles, std::size_t n_tokens, const dense::Buffer& keys,
                   dense::Buffer& rotated) const;
  void code(const TensorCodebook* codebook, std::size_t n_tokens, const dense::Buffer& rows,
            dense::Buffer& coded);
  AttentionRows attention_rows(const RopeAngles& angles, std::size_t n_tokens,
                               Activations& activations);
  template <typename Function>
  void for_rows(std::size_t n_tokens, const Function& function);
  void pack(const LayerTensors& layer, Direction direction);

  ModelShape shape_;
  const dense::Table& table_;
  ThreadParallelFor& parallel_;  // coding may throw
  AttentionPass attention_;
  std::vector<Scratch> scratch_;
  dense::Packed q_, k_, v_, o_, gate_, up_, down_;
  dense::Buffer rotated_keys_, rotated_coded_keys_;
  std::vector<std::uint16_t> codes_;
  dense::Buffer attention_gradients_;
  dense::Buffer query_gradients_, key_gradients_, value_gradients_;
  std::optional<ExactTokens> exact_;
  dense::Buffer far_keys_, far_values_;
};

}  // namespace cqkv
