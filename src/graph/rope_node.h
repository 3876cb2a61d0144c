// The rotation that a ROPE node of a ggml graph stands for. The arithmetic is rope/rope.h's;
// finding the relevant node is the caller's job.
#pragma once

#include <ggml.h>

#include "cqkv/status.h"

#include "rope/rope.h"

namespace cqkv {

/// Whether the node rotates in sections, so that its tokens have four positions each.
bool has_sections(const ggml_tensor* node);

/// The parameters of a ROPE node over text, for which rotations in sections are NeoX
/// (RopeSections). Of a graph that is only planned, without memory, frequency factors count as
/// none. kUnsupported for other modes than normal, NeoX and sections, for a rotation that begins
/// after the first channel and for factors of an unexpected shape; kInvalidArgument for
/// parameters that RopeParams::check refuses; kInternal if factors are missing in a graph that has
/// memory.
Result<RopeParams> read_rope(const ggml_tensor* node);

}  // namespace cqkv
