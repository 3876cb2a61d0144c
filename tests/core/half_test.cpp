// Half floats: all of them.
#include "core/half.h"

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "core/rng.h"

namespace cqkv {
namespace {

// The value by the definition of the format, in double.
double half_by_definition(unsigned half) {
  const double sign = (half & 0x8000U) != 0 ? -1.0 : 1.0;
  const int exponent = static_cast<int>((half >> 10U) & 0x1FU);
  const double mantissa = half & 0x3FFU;
  if (exponent == 0x1F) {
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity()
                         : std::numeric_limits<double>::quiet_NaN();
  }
  return exponent == 0 ? sign * std::ldexp(mantissa, -24)
                       : sign * std::ldexp(1024 + mantissa, exponent - 25);
}

bool is_nan(unsigned half) {
  return (half & 0x7FFFU) > 0x7C00U;
}

TEST(Half, AllValuesWiden) {
  for (unsigned half = 0; half < 65536; half++) {
    const float value = half_to_float(static_cast<std::uint16_t>(half));
    if (is_nan(half)) {
      ASSERT_TRUE(std::isnan(value)) << std::hex << half;
    } else {
      ASSERT_EQ(value, half_by_definition(half)) << std::hex << half;
      ASSERT_EQ(std::signbit(value), (half & 0x8000U) != 0) << std::hex << half;
    }
  }
}

TEST(Half, AllValuesRoundTrip) {
  for (unsigned half = 0; half < 65536; half++) {
    const std::uint16_t back = float_to_half(half_to_float(static_cast<std::uint16_t>(half)));
    if (is_nan(half)) {
      ASSERT_TRUE(is_nan(back)) << std::hex << half;
    } else {
      ASSERT_EQ(back, half);
    }
  }
}

// Between each two neighbours: just below, at and just above the midpoint.
TEST(Half, RoundsToNearestTiesToEven) {
  for (unsigned half = 0; half < 0x7BFFU; half++) {
    const auto low = static_cast<float>(half_by_definition(half));
    const auto high = static_cast<float>(half_by_definition(half + 1));
    const float middle = (low + high) / 2;  // exact in f32
    ASSERT_EQ(float_to_half(std::nextafter(middle, low)), half);
    ASSERT_EQ(float_to_half(std::nextafter(middle, high)), half + 1);
    ASSERT_EQ(float_to_half(middle), half % 2 == 0 ? half : half + 1);
    ASSERT_EQ(float_to_half(-middle), 0x8000U | (half % 2 == 0 ? half : half + 1));
  }
}

TEST(Half, OverflowsToInfinity) {
  EXPECT_EQ(float_to_half(65504.0F), 0x7BFF);
  EXPECT_EQ(float_to_half(65519.996F), 0x7BFF);
  EXPECT_EQ(float_to_half(65520.0F), 0x7C00);
  EXPECT_EQ(float_to_half(-1e30F), 0xFC00);
  EXPECT_EQ(float_to_half(std::numeric_limits<float>::infinity()), 0x7C00);
  EXPECT_EQ(float_to_half(std::numeric_limits<float>::denorm_min()), 0);
}

}  // namespace
}  // namespace cqkv
