// What a graph stores in an attention cache: rows of keys or values, and for keys the rotation
// that made them. Whoever takes rows from a graph, to learn a codebook from them or to code them,
// reads it here, so that what can be learned can be run. What is done with the rows is the
// caller's; the rotation's arithmetic is rope/rope.h's.
#pragma once

#include <optional>

#include <ggml.h>

#include "cqkv/status.h"

#include "graph/names.h"
#include "rope/rope.h"

namespace cqkv {

struct CacheStore {
  CacheName cache;
  const ggml_tensor* rows = nullptr;  ///< [n_channels, n_tokens] f32, each row in one piece.
  /// The ROPE node whose result the rows are, token by token and head by head; nullptr for values
  /// and for keys without rotation.
  const ggml_tensor* rotation = nullptr;
  RopeParams rope;   ///< Of `rotation`: read_rope.
  int head_dim = 0;  ///< Channels of a head; 0 where the graph does not show heads.
};

/// The cache that a node stores rows into; nothing for other nodes.
std::optional<CacheName> stored_cache(const ggml_tensor* node);

/// Reads a node for which stored_cache gives a name.
///
/// Between a rotation and the store may stand views and copies that keep the order of heads and
/// tokens: then every row is one token's rotated heads, and can be rotated back. Keys without a
/// rotation above them, up to the projection, are coded as they are.
///
/// @return kUnsupported, with what to do, for rows that are no matrix of f32, for keys that are
///   changed or put in another order after their rotation, or whose making the graph does not
///   show, and what read_rope refuses.
Result<CacheStore> read_cache_store(const ggml_tensor* node);

}  // namespace cqkv
