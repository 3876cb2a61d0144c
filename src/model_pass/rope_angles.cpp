// RopeAngles: ggml rotates unit vectors, which leaves the cosine and the sine.
#include "model_pass/rope_angles.h"

#include <cstring>
#include <numeric>
#include <string>

#include <ggml-cpu.h>

#include "model_pass/llama_handles.h"

namespace cqkv {

Result<RopeAngles> RopeAngles::create(const RopeParams& rope, std::size_t n_positions) {
  RopeAngles angles;
  angles.neox_ = rope.mode == RopeMode::kNeox;
  angles.n_pairs_ = static_cast<std::size_t>(rope.n_dims) / 2;
  angles.n_positions_ = n_positions;
  const std::size_t n_values = n_positions * rope.n_dims;
  const ggml_init_params params{3 * n_values * sizeof(float) + (std::size_t{1} << 20U), nullptr,
                                false};
  const GgmlContext context(ggml_init(params));
  if (context == nullptr) {
    return Status(StatusCode::kResourceExhausted,
                  "RoPE angles: cannot allocate " + std::to_string(params.mem_size) + " bytes");
  }
  ggml_context* ctx = context.get();
  const auto n_rows = static_cast<std::int64_t>(n_positions);
  ggml_tensor* units = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, rope.n_dims, 1, n_rows);
  ggml_tensor* positions = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_rows);
  const std::size_t stride = angles.neox_ ? 1 : 2;
  const std::size_t partner = angles.neox_ ? angles.n_pairs_ : 1;
  auto* unit = static_cast<float*>(units->data);
  for (std::size_t i = 0; i < n_values; i++) {
    const std::size_t channel = i % rope.n_dims;
    unit[i] = (angles.neox_ ? channel < partner : channel % 2 == 0) ? 1.0F : 0.0F;
  }
  auto* first = static_cast<std::int32_t*>(positions->data);
  std::iota(first, first + n_positions, 0);
  ggml_tensor* factors = nullptr;
  if (!rope.freq_factors.empty()) {
    factors =
        ggml_new_tensor_1d(ctx, GGML_TYPE_F32, static_cast<std::int64_t>(rope.freq_factors.size()));
    std::memcpy(factors->data, rope.freq_factors.data(), ggml_nbytes(factors));
  }
  ggml_tensor* rotated =
      ggml_rope_ext(ctx, units, positions, factors, rope.n_dims, static_cast<int>(rope.mode),
                    rope.n_ctx_orig, rope.freq_base, rope.freq_scale, rope.ext_factor,
                    rope.attn_factor, rope.beta_fast, rope.beta_slow);
  ggml_cgraph* graph = ggml_new_graph(ctx);
  ggml_build_forward_expand(graph, rotated);
  if (ggml_graph_compute_with_ctx(ctx, graph, 1) != GGML_STATUS_SUCCESS) {
    return Status(StatusCode::kInternal, "RoPE angles: ggml failed to compute");
  }
  const auto* out = static_cast<const float*>(rotated->data);
  for (std::size_t p = 0; p < n_positions; p++, out += rope.n_dims) {
    for (std::size_t i = 0; i < angles.n_pairs_; i++) {
      angles.cosines_.push_back(out[i * stride]);
      angles.sines_.push_back(out[i * stride + partner]);
    }
  }
  return angles;
}

void RopeAngles::apply(std::size_t position, std::size_t n_heads, std::size_t head_dim, float sign,
                       float* row) const {
  const float* cosine = cosines_.data() + position * n_pairs_;
  const float* sine = sines_.data() + position * n_pairs_;
  const std::size_t stride = neox_ ? 1 : 2;
  const std::size_t partner = neox_ ? n_pairs_ : 1;
  for (std::size_t h = 0; h < n_heads; h++, row += head_dim) {
    for (std::size_t i = 0; i < n_pairs_; i++) {
      float& x = row[i * stride];
      float& y = row[i * stride + partner];
      const float rotated = x * cosine[i] - sign * y * sine[i];
      y = sign * x * sine[i] + y * cosine[i];
      x = rotated;
    }
  }
}

void RopeAngles::rotate(std::size_t position, std::size_t n_heads, std::size_t head_dim,
                        float* row) const {
  apply(position, n_heads, head_dim, 1.0F, row);
}

void RopeAngles::rotate_back(std::size_t position, std::size_t n_heads, std::size_t head_dim,
                             float* row) const {
  apply(position, n_heads, head_dim, -1.0F, row);
}

}  // namespace cqkv
