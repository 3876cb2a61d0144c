// What kernels on floats do with vectors in the same way at every level: load, store, choose. Also
// vectors of four and of eight floats, whatever kLanes is. What differs between instruction sets is
// in simd-inl.h.
#pragma once

#include <cstring>

#include "kernels/simd-inl.h"

namespace cqkv::kernels {
namespace {

// For transposition: four channels of one token or of two, whatever kLanes is.
using Vec4 = float __attribute__((vector_size(16)));
using Vec8 = float __attribute__((vector_size(32)));

// The same at any address. Not alias declarations, in which clang 14 ignores aligned(4);
// not memcpy, which gcc 12 splits into halves through the stack.
typedef float VecAt __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef float Vec4At __attribute__((vector_size(16), aligned(4), may_alias));
typedef float Vec8At __attribute__((vector_size(32), aligned(4), may_alias));

inline Vec load(const float* at) {
  return *reinterpret_cast<const VecAt*>(at);
}

inline void store(float* at, Vec value) {
  *reinterpret_cast<VecAt*>(at) = value;
}

inline Vec4 load4(const float* at) {
  return *reinterpret_cast<const Vec4At*>(at);
}

inline void store4(float* at, Vec4 value) {
  *reinterpret_cast<Vec4At*>(at) = value;
}

inline Vec splat(float value) {
  return value - Vec{};
}

inline Vec select(IntVec mask, Vec yes, Vec no) {
  return __builtin_bit_cast(
      Vec, (mask & __builtin_bit_cast(IntVec, yes)) | (~mask & __builtin_bit_cast(IntVec, no)));
}

inline Vec larger(Vec a, Vec b) {
  return a > b ? a : b;
}

// The largest number of all lanes.
inline float largest_lane(Vec top) {
  float lanes[kLanes];
  std::memcpy(lanes, &top, sizeof(lanes));
  Vec4 four = load4(lanes);
  for (int lane = 4; lane < kLanes; lane += 4) {
    const Vec4 next = load4(lanes + lane);
    four = next > four ? next : four;
  }
  const Vec4 swapped = __builtin_shufflevector(four, four, 2, 3, 0, 1);
  four = swapped > four ? swapped : four;
  return four[0] > four[1] ? four[0] : four[1];
}

}  // namespace
}  // namespace cqkv::kernels
