// A one-node ggml graph with ROPE_BACK; see unrope.h.
#include "calibration/unrope.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>

#include <ggml-backend.h>
#include <ggml-cpu.h>

#include "attention/rope.h"
#include "calibration/llama_handles.h"

namespace cqkv {

Result<RopeNode> RopeNode::read(const ggml_tensor* node) {
  // Layout of op_params as ggml_rope_ext writes it.
  RopeNode rope;
  rope.n_dims = node->op_params[1];
  rope.mode = node->op_params[2];
  rope.n_ctx_orig = node->op_params[4];
  std::memcpy(&rope.freq_base, node->op_params + 5, sizeof(float));
  std::memcpy(&rope.freq_scale, node->op_params + 6, sizeof(float));
  std::memcpy(&rope.ext_factor, node->op_params + 7, sizeof(float));
  std::memcpy(&rope.attn_factor, node->op_params + 8, sizeof(float));
  std::memcpy(&rope.beta_fast, node->op_params + 9, sizeof(float));
  std::memcpy(&rope.beta_slow, node->op_params + 10, sizeof(float));
  const bool in_sections = rope.mode == GGML_ROPE_TYPE_MROPE || rope.mode == GGML_ROPE_TYPE_IMROPE;
  if (rope.mode != GGML_ROPE_TYPE_NORMAL && rope.mode != GGML_ROPE_TYPE_NEOX && !in_sections) {
    return unsupported("RoPE mode: got " + std::to_string(rope.mode) +
                       ", want 0 (normal), 2 (NeoX), 8 or 40 (sections)");
  }
  if (const ggml_tensor* factors = node->src[2]; factors != nullptr) {
    rope.freq_factors.resize(static_cast<std::size_t>(rope.n_dims / 2));
    ggml_backend_tensor_get(factors, rope.freq_factors.data(), 0,
                            rope.freq_factors.size() * sizeof(float));
  }
  if (in_sections) {
    RopeSections sections;
    std::copy_n(node->op_params + 11, 4, sections.sizes);
    sections.interleaved = rope.mode == GGML_ROPE_TYPE_IMROPE;
    sections.stop_fourth(rope.n_dims / 2, rope.freq_factors);
    rope.mode = GGML_ROPE_TYPE_NEOX;  // captured tokens are text
  }
  return rope;
}

float RopeNode::magnitude() const {
  return ext_factor == 0.0F ? attn_factor : attn_factor * (1.0F - 0.1F * std::log(freq_scale));
}

Status unrope(const RopeNode& rope, std::int32_t first_position, int n_heads, int head_dim,
              std::size_t n_tokens, int n_threads, float* rows) {
  const std::size_t n_bytes = n_tokens * n_heads * head_dim * sizeof(float);
  const ggml_init_params params{3 * n_bytes + (std::size_t{1} << 20U), nullptr, false};
  const GgmlContext context(ggml_init(params));
  if (context == nullptr) {
    return {StatusCode::kResourceExhausted,
            "rotating keys back: cannot allocate " + std::to_string(params.mem_size) + " bytes"};
  }
  ggml_context* ctx = context.get();
  const auto n_rows = static_cast<std::int64_t>(n_tokens);
  ggml_tensor* rotated = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, head_dim, n_heads, n_rows);
  ggml_tensor* positions = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_rows);
  std::memcpy(rotated->data, rows, n_bytes);
  auto* first = static_cast<std::int32_t*>(positions->data);
  std::iota(first, first + n_tokens, first_position);
  ggml_tensor* factors = nullptr;
  if (!rope.freq_factors.empty()) {
    factors =
        ggml_new_tensor_1d(ctx, GGML_TYPE_F32, static_cast<std::int64_t>(rope.freq_factors.size()));
    std::memcpy(factors->data, rope.freq_factors.data(), ggml_nbytes(factors));
  }
  // ROPE_BACK multiplies by the magnitude once more; the inverse must divide by it.
  const float magnitude = rope.magnitude();
  ggml_tensor* back = ggml_rope_ext_back(
      ctx, rotated, positions, factors, rope.n_dims, rope.mode, rope.n_ctx_orig, rope.freq_base,
      rope.freq_scale, rope.ext_factor, rope.attn_factor / (magnitude * magnitude), rope.beta_fast,
      rope.beta_slow);
  ggml_cgraph* graph = ggml_new_graph(ctx);
  ggml_build_forward_expand(graph, back);
  if (ggml_graph_compute_with_ctx(ctx, graph, n_threads) != GGML_STATUS_SUCCESS) {
    return {StatusCode::kInternal, "rotating keys back: ggml failed to compute"};
  }
  std::memcpy(rows, back->data, n_bytes);
  return {};
}

}  // namespace cqkv
