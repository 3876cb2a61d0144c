// A one-node ggml graph with ROPE_BACK; see unrope.h.
#include "model_pass/unrope.h"

#include <cstring>
#include <numeric>
#include <string>

#include <ggml-cpu.h>

#include "model_pass/llama_handles.h"

namespace cqkv {

Status unrope(const RopeParams& rope, std::int32_t first_position, int n_heads, int head_dim,
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
  const float magnitude = RopeFrequencies::of(rope).magnitude;
  ggml_tensor* back = ggml_rope_ext_back(
      ctx, rotated, positions, factors, rope.n_dims, static_cast<int>(rope.mode), rope.n_ctx_orig,
      rope.freq_base, rope.freq_scale, rope.ext_factor, rope.attn_factor / (magnitude * magnitude),
      rope.beta_fast, rope.beta_slow);
  ggml_cgraph* graph = ggml_new_graph(ctx);
  ggml_build_forward_expand(graph, back);
  if (ggml_graph_compute_with_ctx(ctx, graph, n_threads) != GGML_STATUS_SUCCESS) {
    return {StatusCode::kInternal, "rotating keys back: ggml failed to compute"};
  }
  std::memcpy(rows, back->data, n_bytes);
  return {};
}

}  // namespace cqkv
