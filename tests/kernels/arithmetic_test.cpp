// The kernels that compute, against double. Tolerances: a sum of n f32 products is off
// by at most about n eps sum|terms|; rotations add a few eps of the pair's length.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/kernel_fixture.h"

namespace cqkv::kernels {
namespace {

constexpr float kHidden = -std::numeric_limits<float>::infinity();
constexpr float kPi = 3.14159265F;

class ArithmeticTest : public KernelTest {};

INSTANTIATE_TEST_SUITE_P(Levels, ArithmeticTest, all_levels(), level_name);

bool same_bits(const float* a, const float* b, std::size_t n) {
  return std::memcmp(a, b, n * sizeof(float)) == 0;
}

// Rows of cosines and sines [n_rows, 2, n_padded] of random angles.
ExactBuffer<float> random_angle_rows(int n_rows, int n_pairs, int n_padded, Rng& rng) {
  ExactBuffer<float> rows(static_cast<std::size_t>(n_rows) * 2 * n_padded);
  for (int r = 0; r < n_rows; r++) {
    for (int i = 0; i < n_pairs; i++) {
      const auto angle = static_cast<float>(rng.uniform()) * 2 * kPi;
      rows[r * 2 * n_padded + i] = std::cos(angle);
      rows[(r * 2 + 1) * n_padded + i] = std::sin(angle);
    }
  }
  return rows;
}

TEST_P(ArithmeticTest, CombinesAngles) {
  for (const int n_pairs : {1, 3, 8, 10, 32, 40, 64}) {
    Rng rng(n_pairs);
    const int n_padded = (n_pairs + kPairLanes - 1) / kPairLanes * kPairLanes;
    const auto low_rows = random_angle_rows(kBlockCells, n_pairs, n_padded, rng);
    const auto high_row = random_angle_rows(1, n_pairs, n_padded, rng);
    ExactBuffer<float> low_run(static_cast<std::size_t>(2) * n_pairs * kBlockCells);
    const float* low[kBlockCells];
    const float* high[kBlockCells];
    for (int t = 0; t < kBlockCells; t++) {
      low[t] = low_rows.data() + t * 2 * n_padded;
      high[t] = high_row.data();
      for (int i = 0; i < n_pairs; i++) {
        low_run[i * kBlockCells + t] = low[t][i];
        low_run[(n_pairs + i) * kBlockCells + t] = low[t][n_padded + i];
      }
    }
    const std::size_t n = static_cast<std::size_t>(n_pairs) * kBlockCells;
    ExactBuffer<float> cosines(n);
    ExactBuffer<float> sines(n);
    kernel().combine_angles(low, high, n_pairs, cosines.data(), sines.data());
    for (int i = 0; i < n_pairs; i++) {
      for (int t = 0; t < kBlockCells; t++) {
        const double angle = std::atan2(low[t][n_padded + i], low[t][i]) +
                             std::atan2(high[t][n_padded + i], high[t][i]);
        ASSERT_NEAR(cosines[i * kBlockCells + t], std::cos(angle), 4 * kEpsilon) << n_pairs;
        ASSERT_NEAR(sines[i * kBlockCells + t], std::sin(angle), 4 * kEpsilon) << n_pairs;
      }
    }
    ExactBuffer<float> run_cosines(n);
    ExactBuffer<float> run_sines(n);
    kernel().combine_run(low_run.data(), high_row.data(), n_pairs, run_cosines.data(),
                         run_sines.data());
    ASSERT_TRUE(same_bits(run_cosines.data(), cosines.data(), n)) << n_pairs;
    ASSERT_TRUE(same_bits(run_sines.data(), sines.data(), n)) << n_pairs;
  }
}

TEST_P(ArithmeticTest, RotatesPairsOfBothModes) {
  for (const int n_pairs : {1, 5, 32}) {
    for (const bool neox : {false, true}) {
      Rng rng(n_pairs);
      const int n_channels = 2 * n_pairs + 3;  // the last three are not rotated
      const auto before = random_floats(static_cast<std::size_t>(n_channels) * kBlockCells, rng);
      const auto cosines = random_floats(static_cast<std::size_t>(n_pairs) * kBlockCells, rng);
      const auto sines = random_floats(static_cast<std::size_t>(n_pairs) * kBlockCells, rng);
      ExactBuffer<float> tile(before.size());
      std::copy(before.begin(), before.end(), tile.begin());
      kernel().rotate_pairs(tile.data(), n_pairs, neox ? 1 : 2, neox ? n_pairs : 1, cosines.data(),
                            sines.data());
      for (std::size_t at = 0; at < static_cast<std::size_t>(n_pairs) * kBlockCells; at++) {
        const std::size_t i = at / kBlockCells;
        const std::size_t t = at % kBlockCells;
        const std::size_t x = (neox ? i : 2 * i) * kBlockCells + t;
        const std::size_t y = x + (neox ? n_pairs : 1) * kBlockCells;
        const double c = cosines[at];
        const double s = sines[at];
        ASSERT_NEAR(tile[x], before[x] * c - before[y] * s, 32 * kEpsilon);
        ASSERT_NEAR(tile[y], before[x] * s + before[y] * c, 32 * kEpsilon);
      }
      const std::size_t rotated = static_cast<std::size_t>(n_pairs) * 2 * kBlockCells;
      ASSERT_TRUE(same_bits(tile.data() + rotated, before.data() + rotated, 3 * kBlockCells));
    }
  }
}

// A dot product in double, and the sum of its terms' sizes.
struct Dot {
  double sum = 0;
  double size = 0;

  void add(double a, double b) {
    sum += a * b;
    size += std::abs(a * b);
  }
};

void expect_scores(const KernelTable& kernel, int head_dim, int n_rows) {
  Rng rng(head_dim * 100 + n_rows);
  const std::size_t stride = head_dim + 2;
  const auto queries = random_floats(n_rows == 0 ? 0 : (n_rows - 1) * stride + head_dim, rng);
  const auto keys = random_floats(static_cast<std::size_t>(head_dim) * kBlockCells, rng);
  ExactBuffer<float> scores(static_cast<std::size_t>(n_rows) * kBlockCells);
  kernel.score_rows(queries.data(), stride, n_rows, head_dim, keys.data(), scores.data());
  for (int at = 0; at < n_rows * kBlockCells; at++) {
    const float* query = queries.data() + at / kBlockCells * stride;
    Dot want;
    for (int d = 0; d < head_dim; d++) {
      want.add(query[d], keys[d * kBlockCells + at % kBlockCells]);
    }
    ASSERT_NEAR(scores[at], want.sum, (head_dim + 1) * kEpsilon * want.size) << head_dim;
  }
  for (int r = 0; r < n_rows; r++) {
    ExactBuffer<float> alone(kBlockCells);
    kernel.score_rows(queries.data() + r * stride, stride, 1, head_dim, keys.data(), alone.data());
    ASSERT_TRUE(same_bits(alone.data(), scores.data() + r * kBlockCells, kBlockCells))
        << head_dim << " channels, row " << r << " of " << n_rows;
  }
}

TEST_P(ArithmeticTest, ScoresRows) {
  for (const int head_dim : {1, 3, 24, 64, 80, 256}) {
    for (const int n_rows : {0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 25}) {
      expect_scores(kernel(), head_dim, n_rows);
    }
  }
}

void expect_accumulated(const KernelTable& kernel, int n_channels, int n_rows) {
  Rng rng(n_channels * 100 + n_rows);
  const std::size_t stride = n_channels + 5;
  const std::size_t out_stride = n_channels + 3;
  const auto p = random_floats(static_cast<std::size_t>(n_rows) * kBlockCells, rng);
  const auto values = random_floats((kBlockCells - 1) * stride + n_channels, rng);
  const auto rescale = random_floats(n_rows, rng);
  const auto before = random_floats((n_rows - 1) * out_stride + n_channels, rng);
  ExactBuffer<float> out(before.size());
  std::copy(before.begin(), before.end(), out.begin());
  kernel.accumulate_rows(p.data(), n_rows, values.data(), stride, n_channels, rescale.data(),
                         out.data(), out_stride);
  for (int at = 0; at < n_rows * n_channels; at++) {
    const int r = at / n_channels;
    const int d = at % n_channels;
    Dot want;
    want.add(before[r * out_stride + d], rescale[r]);
    for (int t = 0; t < kBlockCells; t++) {
      want.add(p[r * kBlockCells + t], values[t * stride + d]);
    }
    ASSERT_NEAR(out[r * out_stride + d], want.sum, (kBlockCells + 2) * kEpsilon * want.size);
  }
  for (int r = 0; r < n_rows; r++) {
    ExactBuffer<float> alone(n_channels);
    std::copy_n(before.data() + r * out_stride, n_channels, alone.data());
    kernel.accumulate_rows(p.data() + r * kBlockCells, 1, values.data(), stride, n_channels,
                           rescale.data() + r, alone.data(), n_channels);
    ASSERT_TRUE(same_bits(alone.data(), out.data() + r * out_stride, n_channels))
        << n_channels << " channels, row " << r << " of " << n_rows;
  }
}

TEST_P(ArithmeticTest, AccumulatesRows) {
  for (const int n_channels : {16, 32, 48, 80, 128, 256}) {
    for (const int n_rows : {1, 2, 3, 4, 6, 7, 13}) {
      expect_accumulated(kernel(), n_channels, n_rows);
    }
  }
}

// One row whose maximum is already 0: softmax_rows then gives e^x itself.
TEST_P(ArithmeticTest, ExponentialIsAccurate) {
  const ExactBuffer<float> mask(kBlockCells);
  double worst = 0;
  for (int step = 0; step < 4000; step++) {
    ExactBuffer<float> x(kBlockCells);
    for (int t = 0; t < kBlockCells; t++) {
      x[t] = -static_cast<float>(step * kBlockCells + t) * 0.0004F;
    }
    ExactBuffer<float> p(kBlockCells);
    std::copy(x.begin(), x.end(), p.begin());
    float maximum = 0;
    float sum = 0;
    float rescale = 0;
    kernel().softmax_rows(p.data(), 1, 1.0F, mask.data(), 1, &maximum, &sum, &rescale);
    for (int t = 0; t < kBlockCells; t++) {
      const double want = std::exp(double{x[t]});
      if (x[t] > -87.3F) {
        worst = std::max(worst, std::abs(p[t] - want) / want);
      } else {
        ASSERT_NEAR(p[t], 0.0F, 2e-38F) << x[t];
      }
    }
  }
  EXPECT_LT(worst, 2 * kEpsilon);
}

TEST_P(ArithmeticTest, CapsFollowTheFormula) {
  constexpr int kSteps = 100;
  constexpr float kScale = 0.03F;
  constexpr float kCap = 50.0F;
  for (int step = -kSteps; step < kSteps; step++) {
    ExactBuffer<float> scores(kBlockCells);
    for (int t = 0; t < kBlockCells; t++) {
      scores[t] = static_cast<float>(step * kBlockCells + t) * 0.1F;
    }
    const std::vector<float> given(scores.begin(), scores.end());
    kernel().cap_scores(scores.data(), scores.size(), kScale, kCap);
    for (int t = 0; t < kBlockCells; t++) {
      ASSERT_NEAR(scores[t], kCap * std::tanh(double{given[t]} * double{kScale}), 3e-7 * kCap)
          << given[t];
    }
  }
}

TEST_P(ArithmeticTest, CapsKeepWhatIsNoNumber) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  ExactBuffer<float> scores(kBlockCells);
  scores[1] = std::numeric_limits<float>::quiet_NaN();
  scores[2] = kInfinity;
  scores[3] = -kInfinity;
  kernel().cap_scores(scores.data(), scores.size(), 0.5F, 30.0F);
  EXPECT_EQ(scores[0], 0.0F);
  EXPECT_TRUE(std::isnan(scores[1]));
  EXPECT_EQ(scores[2], 30.0F);
  EXPECT_EQ(scores[3], -30.0F);
}

struct SoftmaxRows {
  ExactBuffer<float> scores;
  ExactBuffer<float> maxima;
  ExactBuffer<float> sums;
  ExactBuffer<float> rescale;

  explicit SoftmaxRows(int n_rows)
      : scores(static_cast<std::size_t>(n_rows) * kBlockCells),
        maxima(n_rows),
        sums(n_rows),
        rescale(n_rows) {
    std::fill(maxima.begin(), maxima.end(), kHidden);
  }
};

// Scores of size s have error s eps, so exponentials have that relative error besides
// their own 2 eps; sums add 64 eps.
TEST_P(ArithmeticTest, SoftmaxFollowsTheFormula) {
  constexpr int kRows = 6;
  constexpr int kRowsPerMask = 3;
  Rng rng(5);
  SoftmaxRows rows(kRows);
  std::vector<double> maxima(kRows, -std::numeric_limits<double>::infinity());
  std::vector<double> sums(kRows);
  for (int step = 0; step < 5; step++) {
    const auto raw = random_floats(rows.scores.size(), rng);
    std::copy(raw.begin(), raw.end(), rows.scores.begin());
    auto mask = random_floats(static_cast<std::size_t>(2) * kBlockCells, rng);
    for (std::size_t i = 0; i < mask.size(); i += 3) {
      mask[i] = kHidden;
    }
    kernel().softmax_rows(rows.scores.data(), kRows, 0.7F, mask.data(), kRowsPerMask,
                          rows.maxima.data(), rows.sums.data(), rows.rescale.data());
    for (int r = 0; r < kRows; r++) {
      std::vector<double> s(kBlockCells);
      double top = maxima[r];
      for (int t = 0; t < kBlockCells; t++) {
        s[t] = raw[r * kBlockCells + t] * double{0.7F} + mask[r / kRowsPerMask * kBlockCells + t];
        top = std::max(top, s[t]);
      }
      const double rescale = std::exp(maxima[r] - top);
      sums[r] *= rescale;
      for (int t = 0; t < kBlockCells; t++) {
        const double p = std::exp(s[t] - top);
        ASSERT_NEAR(rows.scores[r * kBlockCells + t], p, 16 * kEpsilon);
        sums[r] += p;
      }
      maxima[r] = top;
      ASSERT_NEAR(rows.maxima[r], top, 4 * kEpsilon);
      ASSERT_NEAR(rows.rescale[r], rescale, 16 * kEpsilon);
      ASSERT_NEAR(rows.sums[r], sums[r], 100 * kEpsilon * sums[r]);
    }
  }
}

TEST_P(ArithmeticTest, SoftmaxOfNothingChangesNothing) {
  ExactBuffer<float> mask(kBlockCells);
  std::fill(mask.begin(), mask.end(), kHidden);
  SoftmaxRows rows(2);
  rows.maxima[1] = 3.25F;
  rows.sums[1] = 17.125F;
  kernel().softmax_rows(rows.scores.data(), 2, 1.0F, mask.data(), 2, rows.maxima.data(),
                        rows.sums.data(), rows.rescale.data());
  EXPECT_EQ(rows.maxima[0], kHidden);
  EXPECT_EQ(rows.sums[0], 0.0F);
  EXPECT_EQ(rows.maxima[1], 3.25F);
  EXPECT_EQ(rows.sums[1], 17.125F);
  for (int r = 0; r < 2; r++) {
    EXPECT_EQ(rows.rescale[r], 1.0F);
  }
  for (const float p : rows.scores) {
    ASSERT_EQ(p, 0.0F);
  }
}

TEST_P(ArithmeticTest, MergeSkipsEmptyPartsAndAddsTheRest) {
  constexpr int kChannels = 32;
  const float part_maxima[3] = {kHidden, 1.0F, 2.0F};
  const float part_sums[3] = {0.0F, 2.0F, 3.0F};
  float maxima[3] = {0.5F, kHidden, 1.0F};
  float sums[3] = {4.0F, 0.0F, 5.0F};
  Rng rng(8);
  const auto part = random_floats(static_cast<std::size_t>(3) * kChannels, rng);
  const auto before = random_floats(part.size(), rng);
  ExactBuffer<float> out(part.size());
  std::copy(before.begin(), before.end(), out.begin());
  std::fill_n(out.data() + kChannels, kChannels, 0.0F);  // the row that has seen nothing
  kernel().merge_rows(part_maxima, part_sums, part.data(), 3, kChannels, maxima, sums, out.data());
  EXPECT_EQ(maxima[0], 0.5F);
  EXPECT_EQ(sums[0], 4.0F);
  EXPECT_TRUE(same_bits(out.data(), before.data(), kChannels));
  EXPECT_EQ(maxima[1], 1.0F);
  EXPECT_EQ(sums[1], 2.0F);
  EXPECT_TRUE(same_bits(out.data() + kChannels, part.data() + kChannels, kChannels));
  EXPECT_EQ(maxima[2], 2.0F);
  const double keep = std::exp(-1.0);
  EXPECT_NEAR(sums[2], 5.0 * keep + 3.0, 16 * kEpsilon);
  for (int d = 2 * kChannels; d < 3 * kChannels; d++) {
    ASSERT_NEAR(out[d], before[d] * keep + part[d], 16 * kEpsilon);
  }
}

}  // namespace
}  // namespace cqkv::kernels
