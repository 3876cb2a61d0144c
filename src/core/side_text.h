// How messages call the keys or the values of a layer.
#pragma once

#include <string>

#include "cqkv/types.h"

namespace cqkv {

/// "keys of layer 3"
inline std::string side_text(KvKind kind, int layer) {
  return std::string(kv_kind_name(kind)) + "s of layer " + std::to_string(layer);
}

}  // namespace cqkv
