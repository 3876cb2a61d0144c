// Rope without ggml: checks of parameters, rotation and its inverse, and block tables
// against exact angles. ggml's operator is compared in rope_ggml_test.cpp.
#include "rope/rope.h"

#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "cqkv/isa.h"

#include "core/rng.h"
#include "support/exact_buffer.h"

namespace cqkv {
namespace {

RopeParams params_of(int n_dims, RopeMode mode = RopeMode::kNeox) {
  RopeParams params;
  params.n_dims = n_dims;
  params.mode = mode;
  return params;
}

TEST(RopeParams, LegalOnesPass) {
  EXPECT_TRUE(params_of(64).check(64).ok());
  EXPECT_TRUE(params_of(20).check(80).ok());
  RopeParams factors = params_of(4);
  factors.freq_factors = {1.0F, 8.0F};
  EXPECT_TRUE(factors.check(64).ok());
}

TEST(RopeParams, IllegalOnesAreNamed) {
  std::vector<RopeParams> wrong(9, params_of(64));
  wrong[0].n_dims = 0;
  wrong[1].n_dims = 63;
  wrong[2].n_dims = 66;
  wrong[3].mode = static_cast<RopeMode>(8);
  wrong[4].freq_factors = {1.0F};
  wrong[5].freq_factors.assign(32, 0.0F);
  wrong[6].freq_base = std::numeric_limits<float>::infinity();
  wrong[7].freq_base = 0.0F;
  wrong[8].attn_factor = 0.0F;
  for (std::size_t i = 0; i < wrong.size(); i++) {
    EXPECT_EQ(wrong[i].check(64).code(), StatusCode::kInvalidArgument) << i;
  }
}

TEST(Rope, InverseUndoesForward) {
  for (const RopeMode mode : {RopeMode::kNormal, RopeMode::kNeox}) {
    RopeParams params = params_of(20, mode);
    params.ext_factor = 1.0F;
    params.freq_scale = 0.25F;
    params.n_ctx_orig = 2048;
    Rng rng(1);
    std::vector<float> row(3 * 32);
    for (float& value : row) {
      value = static_cast<float>(rng.normal());
    }
    const std::vector<float> before = row;
    std::vector<float> cosines(10);
    std::vector<float> sines(10);
    rope_row_ggml(params, 777, cosines.data(), sines.data());
    rope_forward(params, cosines.data(), sines.data(), 3, 32, row.data());
    EXPECT_GT(std::abs(row[0] - before[0]), 1e-3);
    for (int i = 20; i < 32; i++) {
      EXPECT_EQ(row[i], before[i]) << "channels beyond n_dims";
    }
    rope_inverse(params, cosines.data(), sines.data(), 3, 32, row.data());
    for (std::size_t i = 0; i < row.size(); i++) {
      ASSERT_NEAR(row[i], before[i], 8 * 0x1p-23 * 4) << i;
    }
  }
}

// <g, m R x> = <m R^T g, x> for all x and g, with a magnitude that is not 1.
TEST(Rope, TransposedMovesToTheOtherSideOfAProduct) {
  for (const RopeMode mode : {RopeMode::kNormal, RopeMode::kNeox}) {
    RopeParams params = params_of(20, mode);
    params.attn_factor = 1.5F;
    Rng rng(2);
    std::vector<float> x(3 * 32);
    std::vector<float> g(x.size());
    for (std::size_t i = 0; i < x.size(); i++) {
      x[i] = static_cast<float>(rng.normal());
      g[i] = static_cast<float>(rng.normal());
    }
    std::vector<float> cosines(10);
    std::vector<float> sines(10);
    rope_row_ggml(params, 777, cosines.data(), sines.data());
    std::vector<float> rotated = x;
    rope_forward(params, cosines.data(), sines.data(), 3, 32, rotated.data());
    std::vector<float> back = g;
    rope_transposed(params, cosines.data(), sines.data(), 3, 32, back.data());
    double one = 0;
    double other = 0;
    double size = 0;
    for (std::size_t i = 0; i < x.size(); i++) {
      one += static_cast<double>(g[i]) * rotated[i];
      other += static_cast<double>(back[i]) * x[i];
      size += std::abs(static_cast<double>(g[i]) * rotated[i]);
    }
    EXPECT_NEAR(one, other, 8 * 0x1p-24 * size);  // three roundings on each side
  }
}

class RopeTableTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { ASSERT_TRUE(force_isa(GetParam()).ok()); }

  void TearDown() override { ASSERT_TRUE(force_isa(supported_isas().front()).ok()); }

  // Positions of one block; the tables are rounded from f64 and the product rounds
  // three times: 4 eps of the magnitude.
  static void expect_exact(const RopeParams& params, const RopeTable& table,
                           const std::vector<std::int32_t>& positions) {
    const std::size_t n = static_cast<std::size_t>(params.n_dims) / 2 * 64;
    ExactBuffer<float> cosines(n);
    ExactBuffer<float> sines(n);
    table.block(positions.data(), cosines.data(), sines.data());
    const RopeFrequencies frequencies = RopeFrequencies::of(params);
    for (std::size_t at = 0; at < n; at++) {
      const double angle = frequencies.frequency[at / 64] * positions[at % 64];
      const double magnitude = frequencies.magnitude;
      ASSERT_NEAR(cosines[at], std::cos(angle) * magnitude, 4 * 0x1p-23 * magnitude)
          << "position " << positions[at % 64];
      ASSERT_NEAR(sines[at], std::sin(angle) * magnitude, 4 * 0x1p-23 * magnitude)
          << "position " << positions[at % 64];
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Levels, RopeTableTest, ::testing::ValuesIn(supported_isas()),
                         [](const auto& level) { return level.param; });

TEST_P(RopeTableTest, BlocksOfAnyPositionsAreExact) {
  for (const int n_dims : {2, 20, 64, 80, 128}) {
    RopeParams params = params_of(n_dims);
    params.attn_factor = 1.25F;
    RopeTable table(params);
    table.reserve(3000);
    Rng rng(n_dims);
    std::vector<std::int32_t> positions(64);
    for (const std::int32_t first : {0, 64, 65, 2944, 2990, 100000, -64, -7}) {
      for (int t = 0; t < 64; t++) {
        positions[t] = first + t;
      }
      expect_exact(params, table, positions);
    }
    for (std::int32_t& position : positions) {
      position = static_cast<std::int32_t>(rng.below(140000));
    }
    positions[5] = -123;
    positions[6] = 1 << 20U;
    expect_exact(params, table, positions);
  }
}

TEST_P(RopeTableTest, AngleDependsOnNothingButItsPosition) {
  const RopeParams params = params_of(64);
  RopeTable table(params);
  table.reserve(128);
  std::vector<std::int32_t> run(64);
  for (int t = 0; t < 64; t++) {
    run[t] = 64 + t;
  }
  std::vector<float> run_cosines(32 * 64);
  std::vector<float> run_sines(32 * 64);
  table.block(run.data(), run_cosines.data(), run_sines.data());
  std::vector<std::int32_t> reversed(run.rbegin(), run.rend());
  const RopeTable empty(params);
  for (const RopeTable* other : {static_cast<const RopeTable*>(&table), &empty}) {
    std::vector<float> cosines(32 * 64);
    std::vector<float> sines(32 * 64);
    other->block(reversed.data(), cosines.data(), sines.data());
    for (int i = 0; i < 32; i++) {
      for (int t = 0; t < 64; t++) {
        ASSERT_EQ(cosines[i * 64 + t], run_cosines[i * 64 + 63 - t]);
        ASSERT_EQ(sines[i * 64 + t], run_sines[i * 64 + 63 - t]);
      }
    }
  }
}

// Llama 3's base: over 40 positions pair 40 of 64 turns by .01097, over 41 by .01124.
TEST(Rope, PairsThatTurnWithinABlock) {
  RopeParams params;
  params.n_dims = 128;
  params.freq_base = 500000.0F;
  EXPECT_EQ(RopeFrequencies::of(params).n_turning(32), 40);
  EXPECT_EQ(RopeFrequencies::of(params).n_turning(40), 40);
  EXPECT_EQ(RopeFrequencies::of(params).n_turning(41), 48);
  EXPECT_EQ(RopeFrequencies::of(params).n_turning(0), 0);
  EXPECT_EQ(RopeFrequencies::of(params).n_turning(1 << 20), 64);
  params.n_dims = 10;  // no multiple of eight: all
  EXPECT_EQ(RopeFrequencies::of(params).n_turning(32), 5);
  // Interpolated by 8, the first pair that hardly turns comes earlier.
  params.n_dims = 128;
  params.freq_scale = 0.125F;
  EXPECT_EQ(RopeFrequencies::of(params).n_turning(32), 32);
  // One pair in front that stands still changes nothing.
  params.freq_scale = 1.0F;
  params.freq_factors.assign(64, 1.0F);
  params.freq_factors[3] = 1e30F;
  EXPECT_EQ(RopeFrequencies::of(params).n_turning(32), 40);
}

}  // namespace
}  // namespace cqkv
