// llama.cpp's names of tensors: the caches, and the weight that tells models apart. All knowledge
// of names that are not part of an API is here; what is stored in a cache is in cache_store.h.
#pragma once

#include <optional>
#include <string>

#include "cqkv/types.h"

namespace cqkv {

/// An attention cache: exactly "cache_k_l<layer>" or "cache_v_l<layer>". Tagged ones
/// ("cache_idx_k_l0") and recurrent states ("cache_r_l0") are something else.
struct CacheName {
  KvKind kind = KvKind::kKey;
  int layer = 0;
};

std::optional<CacheName> parse_cache_name(const char* name);

/// "keys of layer 3"
std::string cache_text(const CacheName& name);

/// Whether the name is that of any state llama.cpp keeps between evaluations.
bool is_cache_like(const char* name);

/// The weight whose bytes are the fingerprint of a layer: a norm, which quantization and repacking
/// leave as it is, and which a graph shows above what the layer stores.
std::string fingerprint_weight(int layer);

}  // namespace cqkv
