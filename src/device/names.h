// llama.cpp's names of cache tensors, and views on them. All knowledge of names
// that are not part of an API is here.
#pragma once

#include <optional>

#include <ggml.h>

#include "cqkv/types.h"

namespace cqkv::device {

/// An attention cache: exactly "cache_k_l<layer>" or "cache_v_l<layer>". Tagged ones
/// ("cache_idx_k_l0") and recurrent states ("cache_r_l0") are something else.
struct CacheName {
  KvKind kind = KvKind::kKey;
  int layer = 0;
};

std::optional<CacheName> parse_cache_name(const char* name);

/// Whether the name is that of any state llama.cpp keeps between evaluations.
bool is_cache_like(const char* name);

/// The tensor that owns the memory of a view.
inline const ggml_tensor* root_of(const ggml_tensor* tensor) {
  while (tensor->view_src != nullptr) {
    tensor = tensor->view_src;
  }
  return tensor;
}

/// Whether ggml computes nothing for the operation.
bool is_noop(ggml_op op);

/// The weight whose bytes are the fingerprint of a layer.
inline constexpr const char* kFingerprintWeight = "blk.%d.attn_norm.weight";

}  // namespace cqkv::device
