// See rotation.h.
#include "device/rotation.h"

#include <string>

#include "device/nodes.h"

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

Result<RopeParams> rope_of(const ggml_tensor* node) {
  const auto mode = op_param<std::int32_t>(node, 2);
  if (mode != 0 && mode != 2) {
    return unsupported("rotary embedding of mode " + std::to_string(mode) +
                       ": only normal (0) and NeoX (2) keys can be coded; run without a codebook");
  }
  if (const auto offset = op_param<std::int32_t>(node, 15); offset != 0) {
    return unsupported("rotary embedding that begins at channel " + std::to_string(offset) +
                       ", want 0; run without a codebook");
  }
  RopeParams params;
  params.n_dims = op_param<std::int32_t>(node, 1);
  params.mode = mode == 2 ? RopeMode::kNeox : RopeMode::kNormal;
  params.n_ctx_orig = op_param<std::int32_t>(node, 4);
  params.freq_base = op_param<float>(node, 5);
  params.freq_scale = op_param<float>(node, 6);
  params.ext_factor = op_param<float>(node, 7);
  params.attn_factor = op_param<float>(node, 8);
  params.beta_fast = op_param<float>(node, 9);
  params.beta_slow = op_param<float>(node, 10);
  const ggml_tensor* factors = node->src[2];
  if (factors != nullptr && factors->data != nullptr && factors->buffer != nullptr) {
    params.freq_factors.resize(static_cast<std::size_t>(params.n_dims) / 2);
    if (factors->type != GGML_TYPE_F32 || ggml_nelements(factors) < params.n_dims / 2) {
      return unsupported("frequency factors of an unexpected shape");
    }
    ggml_backend_tensor_get(factors, params.freq_factors.data(), 0,
                            params.freq_factors.size() * sizeof(float));
  }
  CQKV_RETURN_IF_ERROR(params.check(static_cast<int>(node->ne[0])));
  return params;
}

}  // namespace cqkv::device
