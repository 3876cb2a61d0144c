// What the device does in a graph: recognises the operations on coded caches,
// says why one cannot be served, and runs them. Operations on plain caches go to
// an inner CPU backend (backend.cpp).
//
//   SET_ROWS        rows (for keys: rotated back) are encoded and stored
//   FLASH_ATTN_EXT  attention on codes
//   ROPE, in place  context shift: positions are added to, nothing is re-encoded
#pragma once

#include <ggml.h>

#include "cqkv/status.h"

#include "cache/kv_cache.h"
#include "core/parallel.h"

namespace cqkv::device {

/// Whose operation a node is.
enum class NodeKind {
  kForeign,  ///< Touches no cache of ours.
  kNoop,     ///< Nothing to compute.
  kPlain,    ///< Touches only plain caches of ours.
  kCoded,    ///< Touches a coded cache.
};

NodeKind classify(const ggml_tensor* node);

/// Whether a kCoded or kNoop node of a planned graph can be served; the message says why not and
/// what to do. Compares the model's fingerprint where the graph shows the weights.
Status check_coded(const ggml_tensor* node);

/// Scratch memory of one backend.
struct GraphScratch {
  CacheWorkspace cache;
  std::vector<std::size_t> cells;
  std::vector<std::int32_t> positions;
  std::vector<StreamAttention> streams;
};

/// Runs a kCoded node. Checks it first, as a backstop.
/// @return what check_coded found; kMismatch if a query would see a token that could not be
///   restored; kResourceExhausted. The host takes the graph's tokens back; other tokens are
///   as before, but may have lost their exact rows.
Status run_coded(ggml_tensor* node, ParallelFor& parallel, GraphScratch& scratch);

}  // namespace cqkv::device
