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

namespace {

bool is_in_sections(std::int32_t mode) {
  return mode == GGML_ROPE_TYPE_MROPE || mode == GGML_ROPE_TYPE_IMROPE;
}

RopeSections sections_of(const ggml_tensor* node) {
  RopeSections sections;
  for (int i = 0; i < 4; i++) {
    sections.sizes[i] = op_param<std::int32_t>(node, 11 + i);
  }
  sections.interleaved = op_param<std::int32_t>(node, 2) == GGML_ROPE_TYPE_IMROPE;
  return sections;
}

}  // namespace

Status read_positions(const ggml_tensor* node, std::size_t n,
                      std::vector<std::int32_t>& positions) {
  const ggml_tensor* source = node->src[1];
  positions.resize(n);
  ggml_backend_tensor_get(source, positions.data(), 0, n * sizeof(std::int32_t));
  if (!is_in_sections(op_param<std::int32_t>(node, 2))) {
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
  const auto mode = op_param<std::int32_t>(node, 2);
  if (mode != GGML_ROPE_TYPE_NORMAL && mode != GGML_ROPE_TYPE_NEOX && !is_in_sections(mode)) {
    return unsupported("rotary embedding of mode " + std::to_string(mode) +
                       ": only normal (0), NeoX (2) and sectioned (8, 40) keys can be coded; run "
                       "without a codebook, or with exact keys (--config-k exact)");
  }
  if (const auto offset = op_param<std::int32_t>(node, 15); offset != 0) {
    return unsupported("rotary embedding that begins at channel " + std::to_string(offset) +
                       ", want 0; run without a codebook");
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
  if (is_in_sections(mode)) {
    sections_of(node).stop_fourth(params.n_dims / 2, params.freq_factors);
  }
  CQKV_RETURN_IF_ERROR(params.check(static_cast<int>(node->ne[0])));
  return params;
}

}  // namespace cqkv::device
