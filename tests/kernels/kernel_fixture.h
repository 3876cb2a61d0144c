// What the kernel tests share: a fixture that runs a test at every level of this
// processor, and random buffers.
#pragma once

#include <cstdint>
#include <string>

#include <gtest/gtest.h>

#include "cqkv/isa.h"

#include "core/half.h"
#include "core/rng.h"
#include "kernels/dispatch.h"
#include "support/exact_buffer.h"

namespace cqkv::kernels {

constexpr double kEpsilon = 0x1p-23;

/// Parameter: the name of a level.
class KernelTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { ASSERT_TRUE(force_isa(GetParam()).ok()); }

  void TearDown() override { ASSERT_TRUE(force_isa(supported_isas().front()).ok()); }

  const KernelTable& kernel() const { return active(); }
};

inline ExactBuffer<float> random_floats(std::size_t n, Rng& rng) {
  ExactBuffer<float> values(n);
  for (float& value : values) {
    value = static_cast<float>(rng.normal());
  }
  return values;
}

/// Halves of the same distribution.
inline ExactBuffer<std::uint16_t> random_halves(std::size_t n, Rng& rng) {
  ExactBuffer<std::uint16_t> values(n);
  for (std::uint16_t& value : values) {
    value = float_to_half(static_cast<float>(rng.normal()));
  }
  return values;
}

inline ExactBuffer<std::uint16_t> random_codes(std::size_t n, int n_centroids, Rng& rng) {
  ExactBuffer<std::uint16_t> codes(n);
  for (std::uint16_t& code : codes) {
    code = static_cast<std::uint16_t>(rng.below(static_cast<std::uint64_t>(n_centroids)));
  }
  return codes;
}

inline auto all_levels() {
  return testing::ValuesIn(supported_isas());
}

inline std::string level_name(const testing::TestParamInfo<std::string>& info) {
  return info.param;
}

}  // namespace cqkv::kernels
