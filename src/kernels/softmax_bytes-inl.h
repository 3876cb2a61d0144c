// The step of the online softmax whose probabilities are bytes (SoftmaxBytes in coded_blocks.h).
// The powers of two themselves are powers_row of the level (simd-inl.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/byte_powers.h"
#include "kernels/coded_blocks.h"
#include "kernels/float_constants.h"
#include "kernels/simd-inl.h"
#include "kernels/softmax-inl.h"
#include "kernels/vec-inl.h"

namespace cqkv::kernels {
namespace {

// The largest score of a row; -inf if it sees nothing or its scores are NaN.
inline float top_of_row(const float* scores, float scale, const float* mask) {
  Vec top = splat(-kInfinity);
  for (int i = 0; i < kBlockCells; i += kLanes) {
    top = larger(multiply_add(load(scores + i), splat(scale), load(mask + i)), top);
  }
  return largest_lane(top);
}

// One row of softmax_bytes relative to its top; returns the sum of its probabilities. Of scores
// that are -inf or NaN they are 0.
inline std::int32_t probabilities_of_row(const float* scores, float scale, const float* mask,
                                         float top, std::uint8_t* p) {
  constexpr float kLog2E = 1.44269504F;
  const Vec origin = splat(top > -kInfinity ? top : 0.0F);  // -inf - -inf would be NaN
  Vec exponents[kBlockCells / kLanes];
  for (int i = 0; i < kBlockCells; i += kLanes) {
    const Vec score = multiply_add(load(scores + i), splat(scale), load(mask + i));
    exponents[i / kLanes] = multiply_add(score - origin, splat(kLog2E * kPowerUnit), splat(-1.0F));
  }
  return powers_row(exponents, p);
}

// Some rows of one step, at most kLanes: their tops and the sums of their probabilities.
struct ByteStep {
  float tops[kLanes] = {};
  std::int32_t totals[kLanes] = {};
};

// The states of the rows from `first` on.
inline void move_states(const SoftmaxBytes& call, const ByteStep& step, int first, int n_rows) {
  constexpr float kUnit = 1.0F / static_cast<float>(kLargestProbability);
  float* maxima = call.maxima + first;
  float* sums = call.sums + first;
  float before_lanes[kLanes];
  for (int r = 0; r < kLanes; r++) {
    before_lanes[r] = maxima[r < n_rows ? r : 0];
  }
  const Vec before = load(before_lanes);
  const Vec top = load(step.tops);
  const Vec now = larger(top, before);
  const Vec keep = select(now > before, exp_negative(before - now), splat(1.0F));
  const Vec weight = select(top > -kInfinity, exp_negative(top - now) * kUnit, Vec{});
  for (int r = 0; r < n_rows; r++) {
    maxima[r] = now[r];
    sums[r] = sums[r] * keep[r] + weight[r] * static_cast<float>(step.totals[r]);
    call.rescale[first + r] = keep[r];
    call.weights[first + r] = weight[r];
  }
}

// Some rows together, so that none waits for the top of another.
void softmax_bytes(const SoftmaxBytes& call) noexcept {
  for (int first = 0; first < call.n_rows; first += kLanes) {
    const int n = call.n_rows - first < kLanes ? call.n_rows - first : kLanes;
    const float* scores = call.scores + static_cast<std::size_t>(first) * kBlockCells;
    std::uint8_t* p = call.p + static_cast<std::size_t>(first) * kBlockCells;
    const float* masks[kLanes];
    ByteStep step;
    for (int r = 0; r < n; r++) {
      const int mask = (first + r) / call.rows_per_mask;
      masks[r] = call.mask + static_cast<std::size_t>(mask) * kBlockCells;
      step.tops[r] = top_of_row(scores + r * kBlockCells, call.scale, masks[r]);
    }
    for (int r = 0; r < n; r++) {
      step.totals[r] = probabilities_of_row(scores + r * kBlockCells, call.scale, masks[r],
                                            step.tops[r], p + r * kBlockCells);
    }
    move_states(call, step, first, n);
    for (int r = 0; r < n; r++) {
      if (is_lost(scores + r * kBlockCells, call.maxima + first + r, call.rescale + first + r)) {
        call.sums[first + r] = __builtin_nanf("");
      }
    }
  }
}

}  // namespace
}  // namespace cqkv::kernels
