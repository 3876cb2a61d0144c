// The rotation of keys in a graph: which node made the rows that are stored, and with
// what parameters. The arithmetic is attention/rope.h's.
#pragma once

#include <cstdint>
#include <vector>

#include <ggml.h>

#include "cqkv/status.h"

#include "attention/rope.h"

namespace cqkv::device {

/// Down from the stored rows over views: the operation that made them.
const ggml_tensor* producer_of(const ggml_tensor* rows);

/// Whether a rotation lies above `node` on its main path, up to the projection.
bool has_rotation_above(const ggml_tensor* node);

/// The parameters of a ROPE node (read_rope), with what to do about those that are refused.
Result<RopeParams> rope_of(const ggml_tensor* node);

/// The positions of the n tokens that a ROPE node rotates. kUnsupported if a token has more than
/// one, as those of an image have in a rotation in sections.
Status read_positions(const ggml_tensor* node, std::size_t n, std::vector<std::int32_t>& positions);

}  // namespace cqkv::device
