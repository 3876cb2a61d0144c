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

bool has_memory(const ggml_tensor* tensor) {
  return tensor->data != nullptr && tensor->buffer != nullptr;
}

Status read_factors(const ggml_tensor* node, RopeParams& params) {
  const ggml_tensor* factors = node->src[2];
  if (factors == nullptr) {
    return {};
  }
  if (factors->type != GGML_TYPE_F32 || ggml_nelements(factors) < params.n_dims / 2) {
    return unsupported("frequency factors of type " + std::string(ggml_type_name(factors->type)) +
                       ", " + std::to_string(ggml_nelements(factors)) + " of them, want f32, " +
                       std::to_string(params.n_dims / 2));
  }
  if (!has_memory(factors)) {
    return has_memory(node)
               ? Status(StatusCode::kInternal,
                        "frequency factors '" + std::string(factors->name) + "' have no memory")
               : Status();
  }
  params.freq_factors.resize(static_cast<std::size_t>(params.n_dims) / 2);
  ggml_backend_tensor_get(factors, params.freq_factors.data(), 0,
                          params.freq_factors.size() * sizeof(float));
  return {};
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
  const auto head_dim = static_cast<int>(node->ne[0]);
  CQKV_RETURN_IF_ERROR(params.check(head_dim));
  CQKV_RETURN_IF_ERROR(read_factors(node, params));
  if (has_sections(node)) {
    sections_of(node).stop_fourth(params.n_dims / 2, params.freq_factors);
  }
  CQKV_RETURN_IF_ERROR(params.check(head_dim));
  return params;
}

}  // namespace cqkv
