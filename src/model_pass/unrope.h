// Undoing a ROPE node of a ggml graph on the CPU, with ggml's own ROPE_BACK, so
// that the angles are ggml's by construction. Used on captured keys (capture.h);
// angles for own passes are in rope_angles.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cqkv/status.h"

#include "rope/rope.h"

namespace cqkv {

/// Rotates rows back, in place.
///
/// @param rows            [n_tokens, n_heads, head_dim] f32.
/// @param first_position  of the first row; positions ascend by one.
Status unrope(const RopeParams& rope, std::int32_t first_position, int n_heads, int head_dim,
              std::size_t n_tokens, int n_threads, float* rows);

}  // namespace cqkv
