// Choosing bases (cqkv/basis.h) from rows and their gradients: which channels of keys belong
// together, in which components values are coded best, and by which distance. Learning
// centroids in a basis is rated_tensor.h's; why it helps is in docs/design/bases.md.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "cqkv/basis.h"
#include "cqkv/status.h"

#include "core/parallel.h"
#include "model_pass/kv_rows.h"
#include "rope/rope.h"

namespace cqkv {

/// The second moments of the directions of the gradients g of each KV head, over rows t:
///
///     M = mean of g[t] g[t]^T / |g[t]|^2
///
/// Directions, since the plain moments would be those of the few rows with the largest gradients.
class GradientMoments {
 public:
  GradientMoments() = default;

  explicit GradientMoments(KvShape shape);

  /// @param gradients  [n_rows, n_channels]. Rows of a head without any gradient do not count.
  void add(const float* gradients, std::size_t n_rows);

  /// M, [head_dim, head_dim]; without any gradient the identity divided by head_dim.
  std::vector<double> of_head(int kv_head) const;

 private:
  KvShape shape_;
  std::vector<double> sums_;         // [kv_head, head_dim, head_dim]
  std::vector<std::size_t> counts_;  // [kv_head]
};

/// What a basis is chosen from. Nothing is owned.
struct BasisInput {
  KvShape shape;
  const float* rows = nullptr;  ///< [n_rows, n_channels]
  std::size_t n_rows = 0;
  /// How much each row counts, [n_rows, n_kv_heads], by its gradient.
  std::span<const float> weights;
  const GradientMoments* moments = nullptr;
};

/// Bases of the keys of one layer for groups of 1, 2, 4, 8, ... channels: RoPE pairs stay together,
/// and pairs that belong together share a group. The sum over groups of
///
///     det(M_g C_g)^(1 / group_dim)
///
/// is lowered by exchanging pairs, where C is the weighted covariance of the head's channels and
/// M, of the gradients, is averaged over the rotations of each pair. What codes lose at a given
/// number of bits grows with it. Distances are by the group's block of M: e^T M_g e is the mean
/// square of what an error e changes.
class KeyBases {
 public:
  KeyBases(const BasisInput& input, RopeMode mode, ParallelFor& parallel);

  /// The basis for groups of this size in all heads. Sizes must rise from call to call: each
  /// begins with what the one before found.
  Result<TensorBasis> next(int group_dim, ParallelFor& parallel);

 private:
  KvShape shape_;
  std::vector<std::vector<double>> metrics_;      // [kv_head], with a ridge, of mean diagonal 1
  std::vector<std::vector<double>> covariances_;  // [kv_head]
  std::vector<std::vector<int>> pairs_;           // [kv_head] first channels, in order
  int partner_ = 0;                               // of a first channel: so many channels on
};

/// Bases of the values of one layer: each head is turned into the components y = Q^T L^T x with
/// L L^T = M and Q the principal axes of L^T C L, so that they are uncorrelated and plain
/// distances are those of M. Components are dealt to groups by falling variance, there and back, so
/// that groups are alike.
class ValueBases {
 public:
  ValueBases(const BasisInput& input, ParallelFor& parallel);

  /// The basis for groups of this size in all heads.
  [[nodiscard]] Result<TensorBasis> of(int group_dim) const;

 private:
  KvShape shape_;
  std::vector<std::vector<double>> rotations_;  // [kv_head]: rows by falling variance
};

}  // namespace cqkv
