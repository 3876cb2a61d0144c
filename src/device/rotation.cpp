// See rotation.h.
#include "device/rotation.h"

#include "device/nodes.h"
#include "graph/rope_node.h"

namespace cqkv::device {

const ggml_tensor* producer_of(const ggml_tensor* rows) {
  while (rows != nullptr && (rows->op == GGML_OP_VIEW || rows->op == GGML_OP_RESHAPE)) {
    rows = rows->src[0];
  }
  return rows;
}

bool has_rotation_above(const ggml_tensor* node) {
  for (int i = 0; i < kMaxWalk && node != nullptr; i++) {
    if (node->op == GGML_OP_ROPE) {
      return true;
    }
    if (node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_MUL_MAT_ID) {
      return false;
    }
    node = node->src[0];
  }
  return false;
}

Status read_positions(const ggml_tensor* node, std::size_t n,
                      std::vector<std::int32_t>& positions) {
  const ggml_tensor* source = node->src[1];
  positions.resize(n);
  ggml_backend_tensor_get(source, positions.data(), 0, n * sizeof(std::int32_t));
  if (!has_sections(node)) {
    return {};
  }
  std::vector<std::int32_t> other(n);
  for (std::size_t i = 1; i < 4; i++) {
    ggml_backend_tensor_get(source, other.data(), i * n * sizeof(std::int32_t),
                            n * sizeof(std::int32_t));
    if (other != (i < 3 ? positions : std::vector<std::int32_t>(n))) {
      return unsupported(
          "a token has several positions, as those of images have; coded keys can be rotated by "
          "one only: run with exact keys (--config-k exact)");
    }
  }
  return {};
}

Result<RopeParams> rope_of(const ggml_tensor* node) {
  Result<RopeParams> params = read_rope(node);
  if (!params.ok()) {
    return Status(params.status().code(),
                  params.status().message() +
                      "; run without a codebook, or with exact keys (--config-k exact)");
  }
  return params;
}

}  // namespace cqkv::device
