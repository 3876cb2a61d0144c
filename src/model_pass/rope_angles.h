// The rotations of a model's queries and keys, and of the gradients by them, for positions from 0:
// the angles that rope/rope.h gives for each, kept. Rows of libllama are rotated back in
// capture.cpp.
#pragma once

#include <cstddef>
#include <vector>

#include "rope/rope.h"

namespace cqkv {

/// Const after construction.
class RopeAngles {
 public:
  RopeAngles() = default;

  /// Positions [0, n_positions).
  RopeAngles(const RopeParams& rope, std::size_t n_positions);

  /// Rotates one row of n_heads heads in place: y = m R x.
  void rotate(std::size_t position, std::size_t n_heads, std::size_t head_dim, float* row) const;

  /// The gradient by x, given that by y, in place: m R^T g.
  void rotate_back(std::size_t position, std::size_t n_heads, std::size_t head_dim,
                   float* row) const;

  std::size_t n_positions() const { return n_positions_; }

 private:
  std::size_t n_pairs() const { return static_cast<std::size_t>(rope_.n_dims) / 2; }

  RopeParams rope_;
  std::size_t n_positions_ = 0;
  std::vector<float> cosines_;  // [n_positions, n_pairs], magnitude included
  std::vector<float> sines_;
};

}  // namespace cqkv
