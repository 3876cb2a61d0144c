// Small readers of graph nodes that the operations share: names for messages, and whether a
// tensor is one of the device's caches.
#pragma once

#include <string>

#include <ggml.h>

#include "device/kv_buffer.h"

namespace cqkv::device {

inline bool is_our_cache(const ggml_tensor* tensor) {
  return tensor != nullptr && is_cache_like(root_of(tensor)->name) && is_ours(tensor);
}

/// "SET_ROWS 'node_7'"
inline std::string node_text(const ggml_tensor* node) {
  return std::string(ggml_op_name(node->op)) + " '" + node->name + "'";
}

/// "keys of layer 3"
inline std::string layer_text(const CodedTensor& tensor) {
  return std::string(kv_kind_name(tensor.name.kind)) + "s of layer " +
         std::to_string(tensor.name.layer);
}

/// Nodes visited at most when something is looked for above a node.
inline constexpr int kMaxWalk = 64;

}  // namespace cqkv::device
