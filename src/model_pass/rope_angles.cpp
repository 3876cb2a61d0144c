// See rope_angles.h.
#include "model_pass/rope_angles.h"

#include <cstdint>

namespace cqkv {

RopeAngles::RopeAngles(const RopeParams& rope, std::size_t n_positions)
    : rope_(rope),
      n_positions_(n_positions),
      cosines_(n_positions * n_pairs()),
      sines_(n_positions * n_pairs()) {
  for (std::size_t p = 0; p < n_positions; p++) {
    rope_row_ggml(rope_, static_cast<std::int32_t>(p), cosines_.data() + p * n_pairs(),
                  sines_.data() + p * n_pairs());
  }
}

void RopeAngles::rotate(std::size_t position, std::size_t n_heads, std::size_t head_dim,
                        float* row) const {
  const std::size_t first = position * n_pairs();
  rope_forward(rope_, cosines_.data() + first, sines_.data() + first, static_cast<int>(n_heads),
               static_cast<int>(head_dim), row);
}

void RopeAngles::rotate_back(std::size_t position, std::size_t n_heads, std::size_t head_dim,
                             float* row) const {
  const std::size_t first = position * n_pairs();
  rope_transposed(rope_, cosines_.data() + first, sines_.data() + first, static_cast<int>(n_heads),
                  static_cast<int>(head_dim), row);
}

}  // namespace cqkv
