// Keys, values and the gradients of the token loss by them, for models of the
// architectures in model_file.h: our own forward and backward pass over the model file,
// in f32, without libllama.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "cqkv/codebook.h"
#include "cqkv/status.h"

#include "model_pass/kv_rows.h"
#include "model_pass/layer_pass.h"
#include "model_pass/model_file.h"

namespace cqkv {

struct GradientOptions {
  int n_threads = 1;
  /// Memory for activations kept from the way forwards. What does not fit is computed
  /// again on the way back, layer by layer; results are the same to the bit.
  std::size_t activation_bytes = std::size_t{2500} * 1000 * 1000;
  /// What the cache that codebooks are learned for keeps exactly: gradients are then those through
  /// queries that read codes (FarGradients in attention_pass.h). Nothing: all queries.
  std::optional<ExactTokens> exact = std::nullopt;
};

/// Pre-RoPE keys, values and gradients of whole sequences, one at a time.
///
/// The loss is the sum over tokens of the negative log likelihood of the next one, in
/// nats. (The mean would scale all gradients of a sequence alike, which changes nothing
/// in learning as long as sequences have one length.) A gradient by a key is by the key
/// after its bias and its norm and before RoPE. With GradientOptions::exact it is the gradient by a
/// second copy of the keys and values of a layer, which only queries read that find codes; the
/// copy of the layers above is the same as their own, so each layer's errors count by themselves.
///
/// Numerics: weights are dequantized and everything is f32, so the loss differs from
///   libllama's by what libllama loses in rounding activations to 8 bits. Results do not
///   depend on the number of threads.
/// Memory: per sequence and layer n_tokens * n_embd floats, activation_bytes, one layer's
///   weights in f32, 256 MiB of logits and scratch; the file is mapped.
/// Threads: one call at a time.
class GradientModel {
 public:
  /// @return the errors of ModelFile::load.
  static Result<GradientModel> load(const std::string& path, const GradientOptions& options);

  GradientModel(GradientModel&&) noexcept;
  GradientModel& operator=(GradientModel&&) noexcept;
  GradientModel(const GradientModel&) = delete;
  GradientModel& operator=(const GradientModel&) = delete;
  ~GradientModel();

  const ModelShape& shape() const;

  /// From now on `run` and `loss` read far keys and values as this codebook codes them (not owned;
  /// layers that it says nothing of stay exact); nullptr: exactly. Gradients go through codes as if
  /// they were the rows themselves, and are by what is coded.
  ///
  /// @return kInvalidArgument for a codebook of another shape, or without GradientOptions::exact.
  Status use_codes(const Codebook* codebook);

  /// How the channels of keys are paired.
  RopeMode rope_mode() const;

  /// Runs a sequence and delivers, from the last layer to the first, keys and values
  /// with their gradients, all tokens at once.
  ///
  /// @param tokens  at least 2, of the vocabulary, BOS included if wanted.
  /// @param cancel  may be nullptr; once true, the run ends with kCancelled.
  /// @return the mean loss in nats a predicted token; kCorrupt, naming layer and token,
  ///   for values that are not finite.
  Result<double> run(std::span<const Token> tokens, const KvSink& sink,
                     const std::atomic<bool>* cancel = nullptr);

  /// The mean loss alone, with `offsets` (one a layer, or none) added to keys and values.
  Result<double> loss(std::span<const Token> tokens, std::span<const KvOffset> offsets = {},
                      const std::atomic<bool>* cancel = nullptr);

 private:
  struct State;

  explicit GradientModel(std::unique_ptr<State> state);

  std::unique_ptr<State> state_;
};

}  // namespace cqkv
