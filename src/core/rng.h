// A small random number generator whose sequence is fixed for a seed on every
// platform (the standard library's distributions are not): xoshiro256++ by
// Blackman and Vigna, seeded by splitmix64. Not for cryptography.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

namespace cqkv {

class Rng {
 public:
  /// Equal (seed, stream) give equal sequences; streams of one seed are independent.
  explicit Rng(std::uint64_t seed, std::uint64_t stream = 0) {
    std::uint64_t mix = seed + 0x9E3779B97F4A7C15ULL * (stream + 1);
    for (auto& word : state_) {
      mix += 0x9E3779B97F4A7C15ULL;
      std::uint64_t z = mix;
      z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9ULL;
      z = (z ^ (z >> 27U)) * 0x94D049BB133111EBULL;
      word = z ^ (z >> 31U);
    }
  }

  std::uint64_t next() {
    const std::uint64_t result = std::rotl(state_[0] + state_[3], 23) + state_[0];
    const std::uint64_t shifted = state_[1] << 17U;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }

  /// Uniform in [0, 1).
  double uniform() { return static_cast<double>(next() >> 11U) * 0x1p-53; }

  /// Uniform in [0, n), n > 0.
  std::uint64_t below(std::uint64_t n) {
    return static_cast<std::uint64_t>(uniform() * static_cast<double>(n));
  }

  /// Standard normal (Box-Muller, one of the pair).
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return radius * std::cos(6.283185307179586 * uniform());
  }

 private:
  std::array<std::uint64_t, 4> state_{};
};

}  // namespace cqkv
