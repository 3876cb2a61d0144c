// The rotation of keys in a graph: which node made the rows that are stored, and with
// what parameters. The arithmetic is attention/rope.h's.
#pragma once

#include <ggml.h>

#include "cqkv/status.h"

#include "attention/rope.h"

namespace cqkv::device {

/// Down from the stored rows over views: the operation that made them.
const ggml_tensor* producer_of(const ggml_tensor* rows);

/// Whether a rotation lies above `node` on its main path, up to the projection.
bool has_rotation_above(const ggml_tensor* node);

/// The parameters of a ROPE node. kUnsupported for other modes than normal and NeoX.
Result<RopeParams> rope_of(const ggml_tensor* node);

}  // namespace cqkv::device
