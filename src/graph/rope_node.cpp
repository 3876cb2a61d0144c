// See rope_node.h. The layout of op_params is that of ggml_rope_ext.
#include "graph/rope_node.h"

#include <string>

#include <ggml-backend.h>

#include "graph/op_param.h"

namespace cqkv {
namespace {

RopeSections sections_of(const ggml_tensor* node) {
  RopeSections sections;
  for (int i = 0; i < 4; i++) {
    sections.sizes[i] = op_param<std::int32_t>(node, 11 + i);
  }
  sections.interleaved = op_param<std::int32_t>(node, 2) == GGML_ROPE_TYPE_IMROPE;
  return sections;
}

}  // namespace

bool has_sections(const ggml_tensor* node) {
  const auto mode = op_param<std::int32_t>(node, 2);
  return mode == GGML_ROPE_TYPE_MROPE || mode == GGML_ROPE_TYPE_IMROPE;
}

Result<RopeParams> read_rope(const ggml_tensor* node) {
  const auto mode = op_param<std::int32_t>(node, 2);
  if (mode != GGML_ROPE_TYPE_NORMAL && mode != GGML_ROPE_TYPE_NEOX && !has_sections(node)) {
    return unsupported("rotary embedding of mode " + std::to_string(mode) +
                       ": only normal (0), NeoX (2) and sectioned (8, 40) keys can be coded");
  }
  if (const auto offset = op_param<std::int32_t>(node, 15); offset != 0) {
    return unsupported("rotary embedding that begins at channel " + std::to_string(offset) +
                       ", want 0");
  }
  RopeParams params;
  params.n_dims = op_param<std::int32_t>(node, 1);
  params.mode = mode == GGML_ROPE_TYPE_NORMAL ? RopeMode::kNormal : RopeMode::kNeox;
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
  if (has_sections(node)) {
    sections_of(node).stop_fourth(params.n_dims / 2, params.freq_factors);
  }
  CQKV_RETURN_IF_ERROR(params.check(static_cast<int>(node->ne[0])));
  return params;
}

}  // namespace cqkv
