// The lanes of the scalar level (their names: kmeans_lanes-inl.h): plain loops, compiled for the
// platform's baseline.
#pragma once

#include <cmath>

#include "codebook/kmeans_kernels.h"

namespace cqkv::kmeans {
namespace {

struct Lanes {
  float lane[kLanes];
};

template <typename Function>
inline Lanes each_lane(Function function) {
  Lanes out;
  for (int l = 0; l < kLanes; l++) {
    out.lane[l] = function(l);
  }
  return out;
}

inline Lanes load(const float* from) {
  return each_lane([&](int l) { return from[l]; });
}

inline void store(float* to, const Lanes& a) {
  for (int l = 0; l < kLanes; l++) {
    to[l] = a.lane[l];
  }
}

inline Lanes splat(float value) {
  return each_lane([&](int) { return value; });
}

inline Lanes add(const Lanes& a, const Lanes& b) {
  return each_lane([&](int l) { return a.lane[l] + b.lane[l]; });
}

inline Lanes subtract(const Lanes& a, const Lanes& b) {
  return each_lane([&](int l) { return a.lane[l] - b.lane[l]; });
}

inline Lanes smaller(const Lanes& a, const Lanes& b) {
  return each_lane([&](int l) { return a.lane[l] < b.lane[l] ? a.lane[l] : b.lane[l]; });
}

inline Lanes add_product(const Lanes& a, const Lanes& b, const Lanes& sum) {
  return each_lane([&](int l) { return sum.lane[l] + a.lane[l] * b.lane[l]; });
}

inline Lanes add_square(const Lanes& difference, const Lanes& sum) {
  return add_product(difference, difference, sum);
}

inline Lanes select_below(const Lanes& a, const Lanes& b, const Lanes& c, const Lanes& d) {
  return each_lane([&](int l) { return a.lane[l] < b.lane[l] ? c.lane[l] : d.lane[l]; });
}

inline Lanes without(const Lanes& a, int lane) {
  return each_lane([&](int l) { return l == lane ? __builtin_inff() : a.lane[l]; });
}

inline float root(float value) {
  return std::sqrt(value);
}

inline float lowest(const Lanes& a) {
  float least = a.lane[0];
  for (const float value : a.lane) {
    least = value < least ? value : least;
  }
  return least;
}

inline unsigned mask_below(const Lanes& a, float limit) {
  unsigned mask = 0;
  for (unsigned l = 0; l < kLanes; l++) {
    mask |= (a.lane[l] < limit ? 1U : 0U) << l;
  }
  return mask;
}

inline unsigned mask_equal(const Lanes& a, float value) {
  unsigned mask = 0;
  for (unsigned l = 0; l < kLanes; l++) {
    mask |= (a.lane[l] == value ? 1U : 0U) << l;
  }
  return mask;
}

}  // namespace
}  // namespace cqkv::kmeans
