// Learning the codebook of one cache tensor (the keys or the values of one layer) from
// its rows: one weighted k-means problem (kmeans.h) per KV head and group, in parallel.
// Rows and gradients come from src/model_pass.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "cqkv/codebook.h"
#include "cqkv/status.h"

#include "core/parallel.h"

namespace cqkv {

namespace kmeans {
struct Kernels;
}

struct LearnOptions {
  int max_iterations = 100;
  double tolerance = 1e-5;  ///< See KmeansOptions.
  std::uint64_t seed = 1;
  /// Which tensor of the model: 2 * layer, + 1 for values. Group g of the tensor draws
  /// from stream (tensor << 32) + g, so a tensor is learned the same alone or with others.
  std::uint32_t tensor = 0;
  /// Called after each group with groups done and in all; from any thread, one at a time.
  std::function<void(int done, int total)> progress;
  const std::atomic<bool>* cancelled = nullptr;
  const kmeans::Kernels* kernels = nullptr;  ///< Null: those of active_isa().
};

/// What learning did. Objectives are sums over all groups.
struct LearnStats {
  double start_objective = 0;  ///< At the k-means++ start.
  double objective = 0;        ///< At the end, before rounding to 16-bit floats.
  double spread = 0;           ///< Of one centroid a group, its weighted mean.
  /// Mean over groups of objective / spread: the share of the variance that is lost.
  double relative_error = 0;
  double mean_iterations = 0;
  int max_iterations = 0;
  int n_converged = 0;         ///< Groups that stopped by themselves.
  int n_uniform_fallback = 0;  ///< Groups whose weights were all zero.
};

struct LearnedTensor {
  TensorCodebook codebook;
  LearnStats stats;
};

/// Rows to learn from and what is wanted. Nothing is owned.
struct LearnInput {
  CodecSpec spec;
  int n_kv_heads = 0;
  int head_dim = 0;
  /// [n_tokens, n_kv_heads * head_dim] f32, rows `row_stride` floats apart; finite.
  const float* rows = nullptr;
  std::size_t n_tokens = 0;
  std::size_t row_stride = 0;
  /// [n_tokens, n_kv_heads * head_dim / group_dim], see fisher_weights; empty: uniform.
  std::span<const float> weights;
};

/// Learns the centroids of each group g by itself:
///
///     minimise  sum over tokens t of weights[t][g] |rows[t] of group g - nearest centroid|^2
///
/// @return kInvalidArgument if the shapes disagree, there are fewer tokens than centroids, a
///   row or weight is not finite (named by head, group and token) or a centroid is beyond
///   the 16-bit floats; kCancelled;
///   kResourceExhausted without memory for the buffers of a thread.
/// Numerics: see KmeansSolver; the result does not depend on the number of threads.
/// Memory: one solver a thread; rows are read in place.
/// Source: Coupled Quantization (arXiv 2405.03917), section 3.2.1, equations 5 and 6.
Result<LearnedTensor> learn_tensor_codebook(const LearnInput& input, const LearnOptions& options,
                                            ParallelFor& parallel);

/// The share of the variance that a codebook loses on rows, most usefully on rows that it
/// was not learned from: the mean over groups g of
///
///     sum over tokens t of weights[t][g] |rows[t] of group g - its nearest centroid|^2
///     --------------------------------------------------------------------------------
///     sum over tokens t of weights[t][g] |rows[t] of group g - the weighted mean|^2
///
/// as LearnStats::relative_error is for the rows learned from. A group whose rows are
/// alike up to the rounding of 16-bit floats counts 0; one whose weights are all zero counts as if
/// they were all 1.
///
/// @param input  of the codebook's shape; at least one token.
/// @return kInvalidArgument if the shapes disagree or there is no token.
/// Numerics: centroids are the 16-bit floats that a cache is coded with; sums in f64.
///   Does not depend on the number of threads.
Result<double> relative_coding_error(const TensorCodebook& codebook, const LearnInput& input,
                                     ParallelFor& parallel);

/// Fisher weight of a token for a group: the sum of the diagonal of the Fisher information
/// over the channels of the group,
///
///     weights[t][g] = sum over channels c of group g of gradients[t][c]^2
///
/// @param gradients  [n_tokens, n_channels] f32 of the loss by the tensor.
/// @param weights    [n_tokens, n_channels / group_dim], overwritten.
/// @return kInvalidArgument if group_dim does not divide n_channels or the size of `weights`
///   disagrees; `weights` is then untouched.
/// Numerics: squares and sums in f64, rounded to f32 once. There is no common factor against
///   underflow: rows of a tensor come in pieces, and rates compare tensors with each other.
///   Gradients below 2^-75 = 3e-23 alone give no weight.
/// Source: section 3.2.1, equation 6.
Status fisher_weights(const float* gradients, std::size_t n_tokens, int n_channels, int group_dim,
                      std::span<float> weights);

}  // namespace cqkv
