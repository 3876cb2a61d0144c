// Parameters of operations in a ggml graph.
#pragma once

#include <cstring>

#include <ggml.h>

namespace cqkv {

/// The parameter at op_params[index].
template <typename T>
T op_param(const ggml_tensor* node, int index) {
  T value{};
  std::memcpy(&value, node->op_params + index, sizeof(T));
  return value;
}

}  // namespace cqkv
