// Properties of weighted k-means on every instruction set: what must hold whatever the
// local minimum found. Comparison with an independent reference: kmeans_reference_test.cpp.
#include "codebook/kmeans.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "codebook/kmeans_kernels.h"
#include "codebook/kmeans_problems.h"
#include "core/rng.h"
#include "isa/select.h"

namespace cqkv {
namespace {

// Every test runs on every level that this processor has.
class Kmeans : public testing::TestWithParam<const kmeans::Kernels*> {
 protected:
  KmeansResult solve(const KmeansProblem& problem, KmeansOptions options = {}) {
    options.kernels = GetParam();
    auto result = solver.solve(problem, options);
    EXPECT_TRUE(result.ok()) << result.status().message();
    for (const float value : result->centroids) {
      EXPECT_TRUE(std::isfinite(value));
    }
    return *std::move(result);
  }

  KmeansSolver solver;
};

INSTANTIATE_TEST_SUITE_P(Levels, Kmeans, testing::ValuesIn(kmeans::supported_kernels()),
                         [](const auto& level) {
                           return std::string(isa::level_name(level.param->level));
                         });

TEST_P(Kmeans, ObjectiveNeverRises) {
  const auto points = normal_points(3000, 8, 1);
  const auto weights = decade_weights(3000, 2);
  KmeansOptions options;
  options.tolerance = 0;
  const auto result = solve(make_problem(points, 8, 64, &weights), options);
  double before = result.start_objective * (1 + 1e-5);  // The start is summed in f32.
  for (const double objective : result.history) {
    EXPECT_LE(objective, before);
    before = objective;
  }
  EXPECT_EQ(result.iterations, static_cast<int>(result.history.size()));
  // The history is computed by Huygens' theorem on centred points, the end from the
  // points as given.
  EXPECT_NEAR(result.objective, result.history.back(), 1e-5 * result.objective);
}

TEST_P(Kmeans, MoreIterationsContinueTheSameRun) {
  const auto points = normal_points(2000, 4, 3);
  KmeansOptions options;
  options.tolerance = 0;
  double before = std::numeric_limits<double>::infinity();
  const auto problem = make_problem(points, 4, 32);
  options.max_iterations = 12;
  const auto whole = solve(problem, options);
  for (int i = 0; i <= 12; i++) {
    options.max_iterations = i;
    const auto part = solve(problem, options);
    EXPECT_EQ(part.iterations, i);
    EXPECT_LE(part.objective, before * (1 + 1e-6));
    before = part.objective;
    for (int j = 0; j < i; j++) {
      EXPECT_EQ(part.history[j], whole.history[j]);
    }
  }
}

TEST_P(Kmeans, OneCentroidIsTheWeightedMean) {
  for (const int dim : {1, 3, 8, 16}) {
    const auto points = normal_points(1001, dim, 4, 5);
    const auto weights = decade_weights(1001, 5);
    const auto result = solve(make_problem(points, dim, 1, &weights));
    for (int j = 0; j < dim; j++) {
      double sum = 0;
      double mass = 0;
      for (std::size_t p = 0; p < 1001; p++) {
        sum += static_cast<double>(weights[p]) * static_cast<double>(points[p * dim + j]);
        mass += static_cast<double>(weights[p]);
      }
      EXPECT_FLOAT_EQ(result.centroids[j], static_cast<float>(sum / mass));
    }
    EXPECT_TRUE(result.converged);
    EXPECT_NEAR(result.objective, result.spread, 1e-5 * result.spread);
  }
}

TEST_P(Kmeans, OnePlateauPerCentroidIsFoundExactly) {
  // 32 distinct points, each many times, in mixed order: the start alone finds them all.
  const auto plateaus = normal_points(32, 8, 6, 100);
  std::vector<float> points;
  for (std::size_t p = 0; p < 32 * 40; p++) {
    const std::size_t plateau = p * 7 % 32;
    points.insert(points.end(), plateaus.data() + plateau * 8, plateaus.data() + plateau * 8 + 8);
  }
  const auto result = solve(make_problem(points, 8, 32));
  EXPECT_EQ(result.objective, 0);
  EXPECT_TRUE(result.converged);
  for (std::size_t q = 0; q < 32; q++) {
    bool found = false;
    for (std::size_t c = 0; c < 32; c++) {
      found = found || std::equal(plateaus.data() + q * 8, plateaus.data() + q * 8 + 8,
                                  result.centroids.data() + c * 8);
    }
    EXPECT_TRUE(found) << "plateau " << q;
  }
}

TEST_P(Kmeans, FewerDistinctPointsThanCentroids) {
  const std::vector<float> points = {1, 2, 3, 4, 1, 2, 3, 4, 5, 6};
  const auto result = solve(make_problem(points, 2, 16));
  EXPECT_EQ(result.objective, 0);
}

TEST_P(Kmeans, AllPointsEqual) {
  const std::vector<float> points(600, 0.1F);
  const auto result = solve(make_problem(points, 3, 16));
  EXPECT_EQ(result.objective, 0);
  EXPECT_TRUE(result.converged);
  for (const float value : result.centroids) {
    EXPECT_FLOAT_EQ(value, 0.1F);
  }
}

TEST_P(Kmeans, AllWeightsZeroMeansUniform) {
  const auto points = normal_points(500, 4, 7);
  const std::vector<float> zeros(500, 0.0F);
  const auto result = solve(make_problem(points, 4, 16, &zeros));
  const auto uniform = solve(make_problem(points, 4, 16));
  EXPECT_TRUE(result.uniform_fallback);
  EXPECT_FALSE(uniform.uniform_fallback);
  EXPECT_EQ(result.centroids, uniform.centroids);
}

TEST_P(Kmeans, IntegerWeightEqualsCopies) {
  const auto points = normal_points(400, 4, 20);
  std::vector<float> weights;
  std::vector<float> copies;
  for (std::size_t p = 0; p < 400; p++) {
    weights.push_back(static_cast<float>(1 + p % 4));
    for (std::size_t copy = 0; copy < 1 + p % 4; copy++) {
      copies.insert(copies.end(), points.data() + p * 4, points.data() + p * 4 + 4);
    }
  }
  const auto weighted = solve(make_problem(points, 4, 16, &weights));
  const auto copied = solve(make_problem(copies, 4, 16));
  // Copies stand beside each other, so both draw the same start; sums differ in rounding.
  EXPECT_NEAR(weighted.objective, copied.objective, 1e-9 * copied.objective);
  for (std::size_t i = 0; i < weighted.centroids.size(); i++) {
    EXPECT_NEAR(weighted.centroids[i], copied.centroids[i], 1e-6);
  }
}

TEST_P(Kmeans, ZeroWeightEqualsAbsence) {
  const auto points = normal_points(600, 8, 21);
  auto weights = decade_weights(600, 22);
  std::vector<float> kept_points;
  std::vector<float> kept_weights;
  for (std::size_t p = 0; p < 600; p++) {
    if (p % 3 == 1) {
      weights[p] = 0;
    } else {
      kept_weights.push_back(weights[p]);
      kept_points.insert(kept_points.end(), points.data() + p * 8, points.data() + p * 8 + 8);
    }
  }
  const auto with_zeros = solve(make_problem(points, 8, 32, &weights));
  const auto without = solve(make_problem(kept_points, 8, 32, &kept_weights));
  EXPECT_EQ(with_zeros.centroids, without.centroids);
  EXPECT_EQ(with_zeros.objective, without.objective);
  EXPECT_EQ(with_zeros.n_points, 400U);
}

TEST_P(Kmeans, ShiftingThePointsShiftsTheCentroids) {
  auto points = normal_points(1000, 4, 23);
  for (float& value : points) {
    value = std::round(value * 1024) / 1024;  // So that the shift below is exact.
  }
  auto shifted = points;
  for (float& value : shifted) {
    value += 1000;
  }
  const auto here = solve(make_problem(points, 4, 32));
  const auto there = solve(make_problem(shifted, 4, 32));
  for (std::size_t i = 0; i < here.centroids.size(); i++) {
    EXPECT_NEAR(here.centroids[i] + 1000, there.centroids[i], 0x1p-13);  // Half an ulp and one.
  }
}

TEST_P(Kmeans, LargeMeanIsAsGoodAsNone) {
  const auto plain = solve(make_problem(normal_points(4000, 8, 24), 8, 64));
  const auto offset = solve(make_problem(normal_points(4000, 8, 24, 1000), 8, 64));
  EXPECT_NEAR(offset.objective, plain.objective, 0.01 * plain.objective);
}

TEST_P(Kmeans, WeightsMatterOnlyByTheirRatios) {
  const auto points = normal_points(1000, 8, 25);
  const auto weights = decade_weights(1000, 26);
  auto tiny = weights;
  for (float& weight : tiny) {
    weight *= 0x1p-100F;  // About 1e-30; a power of two, so ratios are the same.
  }
  const auto plain = solve(make_problem(points, 8, 32, &weights));
  const auto scaled = solve(make_problem(points, 8, 32, &tiny));
  EXPECT_EQ(plain.centroids, scaled.centroids);
  EXPECT_DOUBLE_EQ(plain.objective * 0x1p-100, scaled.objective);
}

TEST_P(Kmeans, ScaleOfThePointsDoesNotMatter) {
  auto points = normal_points(1000, 8, 27);
  const auto plain = solve(make_problem(points, 8, 32));
  for (const float factor : {0x1p-60F, 0x1p+60F}) {  // Squares would leave the range of f32.
    auto scaled = points;
    for (float& value : scaled) {
      value *= factor;
    }
    const auto result = solve(make_problem(scaled, 8, 32));
    for (std::size_t i = 0; i < plain.centroids.size(); i++) {
      EXPECT_FLOAT_EQ(plain.centroids[i] * factor, result.centroids[i]);
    }
  }
}

TEST_P(Kmeans, OneHeavyWeightGetsItsCentroid) {
  const auto points = normal_points(1000, 8, 28);
  for (const float heavy : {1e6F, 1e30F}) {
    std::vector<float> weights(1000, 1.0F);
    weights[123] = heavy;
    const auto result = solve(make_problem(points, 8, 16, &weights));
    double nearest = std::numeric_limits<double>::infinity();
    for (int c = 0; c < 16; c++) {
      double square = 0;
      for (int j = 0; j < 8; j++) {
        const double step = static_cast<double>(points[123 * 8 + j]) -
                            static_cast<double>(result.centroids[c * 8 + j]);
        square += step * step;
      }
      nearest = std::min(nearest, square);
    }
    EXPECT_LT(nearest, 1e-5) << "weight " << heavy;
    EXPECT_LT(result.objective, 1e4) << "weight " << heavy;
  }
}

TEST_P(Kmeans, RefillsEmptyCentroids) {
  // From a k-means++ start a centroid hardly ever loses all its points; of 20000 random
  // problems of this shape it happened in this one.
  constexpr std::uint64_t kStream = 158;
  const auto points = normal_points(12, 2, 1000 + kStream);
  std::vector<float> weights(12);
  Rng rng(kStream);
  for (float& weight : weights) {
    weight = static_cast<float>(std::exp(3 * rng.normal()));
  }
  KmeansOptions options;
  options.stream = kStream;
  options.tolerance = 0;
  const auto result = solve(make_problem(points, 2, 6, &weights), options);
  EXPECT_EQ(result.n_refilled, 1);
  double before = result.start_objective * (1 + 1e-5);
  for (const double objective : result.history) {
    EXPECT_LE(objective, before);
    before = objective;
  }
  // All centroids are used: coding with any five of them is worse.
  for (std::size_t left_out = 0; left_out < 6; left_out++) {
    double objective = 0;
    for (std::size_t p = 0; p < 12; p++) {
      double nearest = std::numeric_limits<double>::infinity();
      for (std::size_t c = 0; c < 6; c++) {
        const double x = static_cast<double>(points[p * 2] - result.centroids[c * 2]);
        const double y = static_cast<double>(points[p * 2 + 1] - result.centroids[c * 2 + 1]);
        nearest = c == left_out ? nearest : std::min(nearest, x * x + y * y);
      }
      objective += nearest * static_cast<double>(weights[p]);
    }
    EXPECT_GT(objective, result.objective * (1 + 1e-6));
  }
}

TEST_P(Kmeans, SameSeedAndStreamGiveTheSameBits) {
  const auto points = normal_points(2000, 8, 29);
  KmeansOptions options;
  options.seed = 5;
  options.stream = 77;
  const auto problem = make_problem(points, 8, 64);
  const auto first = solve(problem, options);
  solve(make_problem(normal_points(50, 3, 30), 3, 4));  // Another problem in the same buffers.
  EXPECT_EQ(first.centroids, solve(problem, options).centroids);
  options.stream = 78;
  EXPECT_NE(first.centroids, solve(problem, options).centroids);
}

TEST_P(Kmeans, StridesAreHonoured) {
  const auto points = normal_points(500, 8, 31);
  const auto weights = decade_weights(500, 32);
  std::vector<float> wide_points(500 * 11, std::numeric_limits<float>::quiet_NaN());
  std::vector<float> wide_weights(500 * 3, -1.0F);
  for (std::size_t p = 0; p < 500; p++) {
    std::copy_n(points.data() + p * 8, 8, wide_points.data() + p * 11);
    wide_weights[p * 3] = weights[p];
  }
  auto problem = make_problem(points, 8, 16, &weights);
  const auto tight = solve(problem);
  problem.points = wide_points.data();
  problem.point_stride = 11;
  problem.weights = wide_weights.data();
  problem.weight_stride = 3;
  EXPECT_EQ(tight.centroids, solve(problem).centroids);
}

TEST_P(Kmeans, StopsWhenCancelled) {
  const std::atomic<bool> cancelled{true};
  KmeansOptions options;
  options.kernels = GetParam();
  options.cancelled = &cancelled;
  const auto points = normal_points(100, 4, 33);
  EXPECT_EQ(solver.solve(make_problem(points, 4, 4), options).status().code(),
            StatusCode::kCancelled);
}

TEST_P(Kmeans, RefusesIllegalSizes) {
  const auto points = normal_points(100, 4, 34);
  const auto good = make_problem(points, 4, 4);
  const auto code = [&](const KmeansProblem& problem, int max_iterations = 10) {
    KmeansOptions options;
    options.kernels = GetParam();
    options.max_iterations = max_iterations;
    return solver.solve(problem, options).status().code();
  };
  EXPECT_EQ(code(good), StatusCode::kOk);
  EXPECT_EQ(code(good, -1), StatusCode::kInvalidArgument);
  for (const int dim : {0, -1, 17}) {
    auto bad = good;
    bad.dim = dim;
    EXPECT_EQ(code(bad), StatusCode::kInvalidArgument);
  }
  for (const int n_centroids : {0, -1, 4097}) {
    auto bad = good;
    bad.n_centroids = n_centroids;
    EXPECT_EQ(code(bad), StatusCode::kInvalidArgument);
  }
  auto empty = good;
  empty.n_points = 0;
  EXPECT_EQ(code(empty), StatusCode::kInvalidArgument);
}

TEST_P(Kmeans, RefusesWhatIsNotFinite) {
  auto points = normal_points(100, 4, 8);
  auto weights = decade_weights(100, 9);
  KmeansOptions options;
  options.kernels = GetParam();
  points[4 * 17 + 3] = std::numeric_limits<float>::quiet_NaN();
  auto result = solver.solve(make_problem(points, 4, 4), options);
  EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(result.status().message().find("point 17, channel 3"), std::string::npos);
  points[4 * 17 + 3] = 0;
  weights[5] = -1;
  result = solver.solve(make_problem(points, 4, 4, &weights), options);
  EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(result.status().message().find("weight 5"), std::string::npos);
}

}  // namespace
}  // namespace cqkv
