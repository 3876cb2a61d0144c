// Cosines and sines of a model's RoPE for positions from 0, taken from ggml's own
// ROPE, and the rotation of rows by them, forwards and transposed.
#pragma once

#include <cstddef>
#include <vector>

#include "cqkv/status.h"

#include "rope/rope.h"

namespace cqkv {

/// Const after create.
class RopeAngles {
 public:
  /// Positions [0, n_positions).
  static Result<RopeAngles> create(const RopeParams& rope, std::size_t n_positions);

  /// Rotates one row of n_heads heads in place: y = m R x.
  void rotate(std::size_t position, std::size_t n_heads, std::size_t head_dim, float* row) const;

  /// The gradient by x, given that by y, in place: m R^T g.
  void rotate_back(std::size_t position, std::size_t n_heads, std::size_t head_dim,
                   float* row) const;

  std::size_t n_positions() const { return n_positions_; }

 private:
  void apply(std::size_t position, std::size_t n_heads, std::size_t head_dim, float sign,
             float* row) const;

  bool neox_ = false;
  std::size_t n_pairs_ = 0;
  std::size_t n_positions_ = 0;
  std::vector<float> cosines_;  // [n_positions, n_pairs], magnitude included
  std::vector<float> sines_;
};

}  // namespace cqkv
