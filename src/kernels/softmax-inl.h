// The online softmax over scores in floats: its exponential, a step over the scores of a block, the
// cap on scores, and how two partial states become one. Probabilities as bytes are in
// softmax_bytes-inl.h.
#pragma once

#include <cstddef>
#include <cstring>

#include "kernels/coded_blocks.h"
#include "kernels/exp-inl.h"
#include "kernels/float_constants.h"
#include "kernels/kernel_table.h"
#include "kernels/simd-inl.h"
#include "kernels/vec-inl.h"

namespace cqkv::kernels {
namespace {

// e^x for x <= 0 and -inf: at most 2 ulp off, exactly 1 at 0, and 0 where e^x is
// no normal number.
inline Vec exp_negative(Vec x) {
  const IntVec vanishes = x < -87.33654F;
  const ExpParts<Vec> e = exp_parts(larger(x, splat(-87.33654F)),
                                    [](Vec a, Vec b, Vec c) { return multiply_add(a, b, c); });
  const Vec p = multiply_add(e.tail, e.r * e.r, e.r) + 1.0F;
  // n <= 0 stands in the low bits of `shifted`; moved to the exponent it scales by 2^n.
  const Vec scaled = __builtin_bit_cast(
      Vec, __builtin_bit_cast(IntVec, p) + (__builtin_bit_cast(IntVec, e.shifted) << 23));
  return select(vanishes, Vec{}, scaled);
}

inline float exp_negative(float x) {
  return exp_negative(splat(x))[0];
}

// tanh |x| = (1 - e) / (1 + e) with e = exp(-2 |x|).
void cap_scores(float* scores, std::size_t n, float scale, float cap) noexcept {
  for (std::size_t i = 0; i < n; i += kLanes) {
    const Vec x = load(scores + i) * scale;
    const Vec e = exp_negative(larger(x, -x) * -2.0F);
    const Vec size = (1.0F - e) / (1.0F + e) * cap;
    // NOLINTNEXTLINE(misc-redundant-expression): not so of NaN
    store(scores + i, select(x == x, select(x < 0.0F, -size, size), x));
  }
}

// Sixteen partial sums, one for each t modulo 16, added pairwise: the same at every level.
inline float sum_in_order(const Vec* partial) {
  float sums[kChannelLanes];
  std::memcpy(sums, partial, sizeof(sums));
  Vec4 four = (load4(sums) + load4(sums + 8)) + (load4(sums + 4) + load4(sums + 12));
  four += __builtin_shufflevector(four, four, 2, 3, 0, 1);
  return four[0] + four[1];
}

// Scores are all NaN where a query is not finite. What it gets must then be NaN as well: the row
// takes part with a finite maximum, no probabilities, and a sum that is NaN.
inline bool is_lost(const float* scores, float* maximum, float* rescale) {
  const bool lost = scores[0] != scores[0];
  if (lost) {
    *maximum = *maximum > 0.0F ? *maximum : 0.0F;
    *rescale = 1.0F;
  }
  return lost;
}

// One row; returns the sum of its exponentials.
inline float softmax_row(float* scores, float scale, const float* mask, float* maximum,
                         float* rescale) {
  constexpr int kVecs = kBlockCells / kLanes;
  if (is_lost(scores, maximum, rescale)) {
    std::memset(scores, 0, kBlockCells * sizeof(*scores));
    return __builtin_nanf("");
  }
  Vec score[kVecs];
  Vec top = splat(-kInfinity);
  for (int v = 0; v < kVecs; v++) {
    score[v] = multiply_add(load(scores + v * kLanes), splat(scale), load(mask + v * kLanes));
    top = larger(score[v], top);
  }
  const float before = *maximum;
  const float largest = largest_lane(top);
  const float now = largest > before ? largest : before;
  // The usual case is no new maximum, and exp(0) is 1; so it is where nothing is seen yet.
  *rescale = now > before ? exp_negative(before - now) : 1.0F;
  *maximum = now;
  // Where nothing is seen yet, -inf - 0 gives zeros where -inf - -inf would not.
  const Vec origin = splat(now > -kInfinity ? now : 0.0F);
  constexpr int kPartials = kChannelLanes / kLanes;
  Vec partial[kPartials] = {};
  for (int v = 0; v < kVecs; v++) {
    const Vec p = exp_negative(score[v] - origin);
    store(scores + v * kLanes, p);
    partial[v % kPartials] += p;
  }
  return sum_in_order(partial);
}

void softmax_rows(float* scores, int n_rows, float scale, const float* mask, int rows_per_mask,
                  float* maxima, float* sums, float* rescale) noexcept {
  for (int r = 0; r < n_rows; r++) {
    const float* row_mask = mask + static_cast<std::size_t>(r / rows_per_mask) * kBlockCells;
    const float sum = softmax_row(scores + static_cast<std::size_t>(r) * kBlockCells, scale,
                                  row_mask, maxima + r, rescale + r);
    sums[r] = sums[r] * rescale[r] + sum;
  }
}

void merge_rows(const float* part_maxima, const float* part_sums, const float* part_out, int n_rows,
                int n_channels, float* maxima, float* sums, float* out) noexcept {
  for (int r = 0; r < n_rows; r++) {
    if (!(part_maxima[r] > -kInfinity)) {
      continue;
    }
    const float now = part_maxima[r] > maxima[r] ? part_maxima[r] : maxima[r];
    const float keep = exp_negative(maxima[r] - now);
    const float add = exp_negative(part_maxima[r] - now);
    maxima[r] = now;
    sums[r] = sums[r] * keep + part_sums[r] * add;
    const std::size_t row = static_cast<std::size_t>(r) * n_channels;
    for (int d = 0; d < n_channels; d += kLanes) {
      store(out + row + d,
            multiply_add(load(part_out + row + d), splat(add), load(out + row + d) * keep));
    }
  }
}

}  // namespace
}  // namespace cqkv::kernels
