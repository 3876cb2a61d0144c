// What ties a codebook to its model: a hash per layer of a tensor that quantization
// and repacking leave as it is, and that a KV device can reach in the graph.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cqkv/status.h"

namespace cqkv {

/// For each layer hash_bytes (core/hash.h) of the f32 data of fingerprint_weight (graph/names.h),
/// or 0 where a layer has no such tensor or it is not f32: not known.
///
/// @return the errors of GgufFile::open; kCorrupt if the file names no architecture or
///   number of layers.
Result<std::vector<std::uint64_t>> model_fingerprint(const std::string& model_path);

}  // namespace cqkv
