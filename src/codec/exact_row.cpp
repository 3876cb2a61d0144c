// See exact_row.h.
#include "codec/exact_row.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/dispatch.h"

namespace cqkv {

void write_exact_row(ExactRowLayout layout, const float* row, const float* decoded,
                     std::uint8_t* out) {
  auto* residuals = reinterpret_cast<std::int8_t*>(out + layout.residual_offset());
  std::memset(out, 0, layout.row_bytes());
  for (int first = 0; first < layout.n_channels; first += ExactRowLayout::kScaleChannels) {
    const int last = std::min(first + ExactRowLayout::kScaleChannels, layout.n_channels);
    float largest = 0.0F;
    bool wild = false;
    for (int i = first; i < last; i++) {
      const float size = std::abs(row[i] - decoded[i]);
      wild = wild || !(size <= 127.0F * ExactRowLayout::kLargestScale);
      largest = std::max(largest, size);
    }
    const float scale = largest / 127.0F;
    if (wild || scale == 0.0F) {
      continue;
    }
    std::memcpy(out + static_cast<std::size_t>(first) / ExactRowLayout::kScaleChannels * 4, &scale,
                sizeof(scale));
    for (int i = first; i < last; i++) {
      const float steps = std::nearbyint((row[i] - decoded[i]) / scale);
      residuals[i] = static_cast<std::int8_t>(std::clamp(steps, -127.0F, 127.0F));
    }
  }
}

void add_exact_row(ExactRowLayout layout, const std::uint8_t* exact, int first, int n, float* row) {
  kernels::active().add_residual(
      exact, reinterpret_cast<const std::int8_t*>(exact) + layout.residual_offset(), first, n, row);
}

}  // namespace cqkv
