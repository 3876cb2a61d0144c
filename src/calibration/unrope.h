// Undoing a ROPE node of a ggml graph on the CPU, with ggml's own ROPE_BACK, so
// that the angles are ggml's by construction. Used on captured keys (capture.h);
// rope tables for own graphs are in rope_table.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <ggml.h>

#include "cqkv/status.h"

namespace cqkv {

/// The parameters of a ROPE node, copied out of it.
struct RopeNode {
  int n_dims = 0;
  int mode = 0;
  int n_ctx_orig = 0;
  float freq_base = 10000.0F;
  float freq_scale = 1.0F;
  float ext_factor = 0.0F;
  float attn_factor = 1.0F;
  float beta_fast = 32.0F;
  float beta_slow = 1.0F;
  std::vector<float> freq_factors;  ///< Empty or n_dims / 2.

  /// Of a graph over text, for which rotations in sections are NeoX (attention/rope.h).
  /// @return kUnsupported for modes other than normal, NeoX and those.
  static Result<RopeNode> read(const ggml_tensor* node);

  /// The factor by which the rotation lengthens vectors (YaRN), else 1.
  float magnitude() const;
};

/// Rotates rows back, in place.
///
/// @param rows            [n_tokens, n_heads, head_dim] f32.
/// @param first_position  of the first row; positions ascend by one.
Status unrope(const RopeNode& rope, std::int32_t first_position, int n_heads, int head_dim,
              std::size_t n_tokens, int n_threads, float* rows);

}  // namespace cqkv
