// Properties of weighted k-means on every instruction set: what must hold whatever the
// local minimum found. Comparison with an independent reference: kmeans_reference_test.cpp.
#include "codebook/kmeans.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "codebook/kmeans_kernels.h"
#include "core/rng.h"

namespace cqkv {
namespace {

std::vector<float> normal_points(std::size_t n, int dim, std::uint64_t seed, float offset = 0) {
  Rng rng(seed);
  std::vector<float> points(n * dim);
  for (float& value : points) {
    value = offset + static_cast<float>(rng.normal());
  }
  return points;
}

std::vector<float> decade_weights(std::size_t n, std::uint64_t seed, double factor = 1) {
  Rng rng(seed);
  std::vector<float> weights(n);
  for (float& weight : weights) {
    weight = static_cast<float>(factor * std::exp(2 * rng.normal()));
  }
  return weights;
}

KmeansProblem make_problem(const std::vector<float>& points, int dim, int n_centroids,
                           const std::vector<float>* weights = nullptr) {
  KmeansProblem problem;
  problem.points = points.data();
  problem.n_points = points.size() / dim;
  problem.point_stride = dim;
  problem.dim = dim;
  problem.n_centroids = n_centroids;
  problem.weights = weights == nullptr ? nullptr : weights->data();
  return problem;
}

// Every test runs on every level that this processor has.
class Kmeans : public testing::TestWithParam<const kmeans::Kernels*> {
 protected:
  KmeansResult solve(const KmeansProblem& problem, KmeansOptions options = {}) {
    options.kernels = GetParam();
    auto result = solver_.solve(problem, options);
    EXPECT_TRUE(result.ok()) << result.status().message();
    for (const float value : result->centroids) {
      EXPECT_TRUE(std::isfinite(value));
    }
    return *std::move(result);
  }

  KmeansSolver solver_;
};

INSTANTIATE_TEST_SUITE_P(Levels, Kmeans, testing::ValuesIn(kmeans::supported_kernels()),
                         [](const auto& level) { return std::string(level.param->name); });

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
    points.insert(points.end(), plateaus.begin() + plateau * 8, plateaus.begin() + plateau * 8 + 8);
  }
  const auto result = solve(make_problem(points, 8, 32));
  EXPECT_EQ(result.objective, 0);
  EXPECT_TRUE(result.converged);
  for (std::size_t q = 0; q < 32; q++) {
    bool found = false;
    for (std::size_t c = 0; c < 32; c++) {
      found = found || std::equal(plateaus.begin() + q * 8, plateaus.begin() + q * 8 + 8,
                                  result.centroids.begin() + c * 8);
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

TEST_P(Kmeans, RefusesWhatIsNotFinite) {
  auto points = normal_points(100, 4, 8);
  auto weights = decade_weights(100, 9);
  KmeansOptions options;
  options.kernels = GetParam();
  points[4 * 17 + 3] = std::numeric_limits<float>::quiet_NaN();
  auto result = solver_.solve(make_problem(points, 4, 4), options);
  EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(result.status().message().find("point 17, channel 3"), std::string::npos);
  points[4 * 17 + 3] = 0;
  weights[5] = -1;
  result = solver_.solve(make_problem(points, 4, 4, &weights), options);
  EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(result.status().message().find("weight 5"), std::string::npos);
}

}  // namespace
}  // namespace cqkv
