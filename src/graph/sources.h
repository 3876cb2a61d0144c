// How the tensors of a ggml graph hang together: what a view shows, what an operation does, and
// what lies above a node. What is stored in a cache is in cache_store.h.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include <ggml.h>

namespace cqkv {

/// Nodes visited at most when something is looked for above a node.
inline constexpr std::size_t kMaxVisited = 64;

/// The tensor that owns the memory of a view.
const ggml_tensor* root_of(const ggml_tensor* tensor);

/// Whether ggml computes nothing for the operation.
bool is_noop(ggml_op op);

/// "SET_ROWS 'node_7'"
std::string node_text(const ggml_tensor* node);

/// The tensor of that name among the nearest kMaxVisited nodes above `node`; nullptr if none.
const ggml_tensor* find_source(const ggml_tensor* node, std::string_view name);

}  // namespace cqkv
