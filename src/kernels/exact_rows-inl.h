// What makes floats of rows that are kept exactly: half floats widened, residuals added to what was
// decoded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/simd-inl.h"
#include "kernels/vec-inl.h"

namespace cqkv::kernels {
namespace {

void add_residual(const std::uint8_t* scales, const std::int8_t* residuals, int first, int n,
                  float* row) noexcept {
  constexpr int kScaleChannels = 32;
  const int end = first + n;
  for (int from = first; from < end;) {
    const int boundary = (from / kScaleChannels + 1) * kScaleChannels;
    const int to = boundary < end ? boundary : end;
    float scale = 0.0F;
    std::memcpy(&scale, scales + static_cast<std::size_t>(from / kScaleChannels) * sizeof(scale),
                sizeof(scale));
    for (int i = from; i < to; i++) {
      row[i - first] += scale * static_cast<float>(residuals[i]);
    }
    from = to;
  }
}

void half_to_float_n(const std::uint16_t* in, std::size_t n, float* out) noexcept {
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(out + i, widen(in + i));
  }
  if (i < n) {
    std::uint16_t halves[kLanes] = {};
    std::memcpy(halves, in + i, (n - i) * sizeof(*in));
    const Vec last = widen(halves);
    std::memcpy(out + i, &last, (n - i) * sizeof(*out));
  }
}

}  // namespace
}  // namespace cqkv::kernels
