// The state of an online softmax: of the rows of one KV head, of all rows of a task, and of each
// range where ranges are run in parallel. What a step does to a state is in the kernels.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "attention/cpu/memory.h"
#include "attention/plan/plan.h"

namespace cqkv {

inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Some rows of a state: maxima, sums and outputs [rows, channels]. A view, as a span is: whoever
// has one may write.
struct SoftmaxState {
  float* maxima = nullptr;
  float* sums = nullptr;
  float* out = nullptr;
};

// The rows of all KV heads of a task, one head after the other.
class TaskState {
 public:
  TaskState(std::size_t n_rows, int n_channels, Carver& carver)
      : n_channels_(n_channels),
        maxima_(carver.take<float>(n_rows)),
        sums_(carver.take<float>(n_rows)),
        out_(carver.take<float>(n_rows * n_channels)) {}

  // The first n_rows as if nothing had been seen.
  void clear(int n_rows) {
    std::fill_n(maxima_.data(), n_rows, kMinusInfinity);
    std::fill_n(sums_.data(), n_rows, 0.0F);
    std::fill_n(out_.data(), static_cast<std::size_t>(n_rows) * n_channels_, 0.0F);
  }

  SoftmaxState all() { return head(0, 0); }

  // The rows of KV head number `index` of a task, of n_rows each.
  SoftmaxState head(int index, int n_rows) {
    const std::size_t row = static_cast<std::size_t>(index) * n_rows;
    return {maxima_.from(row), sums_.from(row), out_.from(row * n_channels_)};
  }

 private:
  int n_channels_;
  WorkArray<float> maxima_;
  WorkArray<float> sums_;
  WorkArray<float> out_;
};

// The states of ranges that are run in parallel and wait to be merged: one for each slice (a range
// of a tile) and KV head. A task writes those of its slice and KV heads, and no other.
class PartialStates {
 public:
  PartialStates(const Plan& plan, int n_kv_heads, Carver& carver)
      : plan_(plan),
        n_kv_heads_(n_kv_heads),
        floats_(carver.take<float>(plan.split_ranges ? static_cast<std::size_t>(plan.n_slices) *
                                                           n_kv_heads * plan.partial_floats()
                                                     : 0)) {}

  SoftmaxState at(int slice, int kv_head) {
    const std::size_t index = static_cast<std::size_t>(slice) * n_kv_heads_ + kv_head;
    float* state = floats_.from(index * plan_.partial_floats());
    Carver carver(reinterpret_cast<std::uint8_t*>(state));
    const auto take = [&](std::size_t n) { return carver.take<float>(n).data(); };
    const auto n_rows = static_cast<std::size_t>(plan_.tile_rows);
    float* maxima = take(n_rows);
    float* sums = take(n_rows);
    return {maxima, sums, take(n_rows * plan_.channels)};
  }

 private:
  const Plan& plan_;
  int n_kv_heads_;
  WorkArray<float> floats_;
};

}  // namespace cqkv
