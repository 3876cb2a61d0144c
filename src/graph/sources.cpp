// See sources.h.
#include "graph/sources.h"

#include <vector>

namespace cqkv {

const ggml_tensor* root_of(const ggml_tensor* tensor) {
  while (tensor->view_src != nullptr) {
    tensor = tensor->view_src;
  }
  return tensor;
}

bool is_noop(ggml_op op) {
  return op == GGML_OP_NONE || op == GGML_OP_VIEW || op == GGML_OP_RESHAPE ||
         op == GGML_OP_PERMUTE || op == GGML_OP_TRANSPOSE;
}

std::string node_text(const ggml_tensor* node) {
  return std::string(ggml_op_name(node->op)) + " '" + node->name + "'";
}

const ggml_tensor* find_source(const ggml_tensor* node, std::string_view name) {
  std::vector<const ggml_tensor*> open{node};
  for (std::size_t i = 0; i < open.size() && i < kMaxVisited; i++) {
    for (const ggml_tensor* source : open[i]->src) {
      if (source == nullptr) {
        continue;
      }
      if (source->name == name) {
        return source;
      }
      open.push_back(source);
    }
  }
  return nullptr;
}

}  // namespace cqkv
