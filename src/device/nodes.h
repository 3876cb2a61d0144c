// Whether a tensor is one of the device's caches, and its name for messages.
#pragma once

#include <string>

#include <ggml.h>

#include "device/kv_buffer.h"
#include "graph/sources.h"

namespace cqkv::device {

inline bool is_our_cache(const ggml_tensor* tensor) {
  return tensor != nullptr && is_cache_like(root_of(tensor)->name) && is_ours(tensor);
}

/// "keys of layer 3"
inline std::string layer_text(const CodedTensor& tensor) {
  return cache_text(tensor.name);
}

}  // namespace cqkv::device
