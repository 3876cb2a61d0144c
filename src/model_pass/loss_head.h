// The end of a model: output norm, logits and the cross entropy of the next token, and
// the gradient of that by the last layer's output. Logits exist for some tokens at a
// time only, and the output weights are unpacked piece by piece.
#pragma once

#include <cstddef>
#include <span>

#include "core/parallel.h"
#include "model_pass/dense.h"
#include "model_pass/kv_rows.h"
#include "model_pass/model_file.h"
#include "model_pass/weights.h"

namespace cqkv {

/// Owns its scratch memory, at most about 300 MB; one call at a time.
class LossHead {
 public:
  LossHead(const ModelFile& model, const dense::Table& table, ParallelFor& parallel)
      : model_(model), table_(table), parallel_(parallel) {}

  /// Sum over tokens t < n - 1 of -log p(tokens[t + 1] | tokens up to t), in nats.
  ///
  /// @param hidden    [n, n_embd], the last layer's output.
  /// @param gradient  of the sum by `hidden`, overwritten, or nullptr: the loss alone.
  double run(std::span<const Token> tokens, const float* hidden, float* gradient);

 private:
  struct Chunk;

  void compute_logits(const Chunk& chunk);
  double compute_losses(const Chunk& chunk, std::span<const Token> tokens, bool with_gradient);
  void back(const Chunk& chunk, const float* hidden, float* gradient);
  template <typename Function>
  void for_rows(const Chunk& chunk, const Function& function);

  const ModelFile& model_;
  const dense::Table& table_;
  ParallelFor& parallel_;
  dense::Packed weights_;
  dense::Buffer norm_;           // [chunk, n_embd]
  dense::Buffer norm_gradient_;  // the same
  dense::Buffer logits_;         // [chunk, n_vocab]
  std::vector<double> losses_;   // [chunk]
};

}  // namespace cqkv
