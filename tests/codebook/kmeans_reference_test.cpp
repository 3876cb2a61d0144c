// K-means of every instruction set against Lloyd's algorithm by brute force in double
// from the same start, over shapes that reach every edge of the blocks; and levels
// against each other. What holds for any start is in kmeans_test.cpp.
#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "codebook/kmeans.h"
#include "codebook/kmeans_kernels.h"
#include "codebook/kmeans_problems.h"
#include "isa/select.h"

namespace cqkv {
namespace {

struct Shape {
  std::size_t n_points;
  int dim;
  int n_centroids;
};

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  return out << shape.n_points << " points of " << shape.dim << ", " << shape.n_centroids
             << " centroids";
}

// Weighted Lloyd in double; no bounds, no refilling.
class Reference {
 public:
  Reference(const KmeansProblem& problem, const std::vector<float>& start)
      : problem_(problem), centroids_(start.begin(), start.end()) {}

  // Returns the objective of the new assignment with the new means.
  double iterate() {
    const int dim = problem_.dim;
    std::vector<double> sums(centroids_.size(), 0.0);
    std::vector<double> mass(static_cast<std::size_t>(problem_.n_centroids), 0.0);
    std::vector<int> nearest(problem_.n_points);
    for (std::size_t p = 0; p < problem_.n_points; p++) {
      nearest[p] = nearest_of(p);
      mass[nearest[p]] += weight(p);
      for (int j = 0; j < dim; j++) {
        sums[nearest[p] * dim + j] += weight(p) * static_cast<double>(point(p)[j]);
      }
    }
    for (std::size_t i = 0; i < sums.size(); i++) {
      if (mass[i / dim] > 0) {
        centroids_[i] = sums[i] / mass[i / dim];
      }
    }
    double objective = 0;
    for (std::size_t p = 0; p < problem_.n_points; p++) {
      objective += weight(p) * squared(p, nearest[p]);
    }
    return objective;
  }

 private:
  const float* point(std::size_t p) const { return problem_.points + p * problem_.point_stride; }

  double weight(std::size_t p) const { return static_cast<double>(problem_.weights[p]); }

  double squared(std::size_t p, int c) const {
    double square = 0;
    for (int j = 0; j < problem_.dim; j++) {
      const double step = static_cast<double>(point(p)[j]) -
                          centroids_[static_cast<std::size_t>(c) * problem_.dim + j];
      square += step * step;
    }
    return square;
  }

  int nearest_of(std::size_t p) const {
    int best = 0;
    for (int c = 1; c < problem_.n_centroids; c++) {
      best = squared(p, c) < squared(p, best) ? c : best;
    }
    return best;
  }

  const KmeansProblem& problem_;
  std::vector<double> centroids_;
};

using Case = std::tuple<const kmeans::Kernels*, Shape>;

class KmeansReference : public testing::TestWithParam<Case> {};

INSTANTIATE_TEST_SUITE_P(
    Shapes, KmeansReference,
    testing::Combine(testing::ValuesIn(kmeans::supported_kernels()),
                     testing::Values(Shape{1, 1, 1}, Shape{2, 3, 2}, Shape{15, 2, 4},
                                     Shape{16, 4, 3}, Shape{17, 5, 5}, Shape{127, 7, 15},
                                     Shape{128, 8, 16}, Shape{129, 8, 17}, Shape{511, 9, 31},
                                     Shape{513, 16, 33}, Shape{700, 1, 2}, Shape{700, 13, 100},
                                     Shape{2000, 8, 256}, Shape{1500, 4, 255}, Shape{2100, 2, 513},
                                     Shape{3000, 3, 1024}, Shape{2500, 2, 2048})),
    [](const auto& level) {
      const Shape& shape = std::get<1>(level.param);
      return std::string(isa::level_name(std::get<0>(level.param)->level)) + "_" +
             std::to_string(shape.n_points) + "x" + std::to_string(shape.dim) + "_" +
             std::to_string(shape.n_centroids);
    });

// An assignment can differ only where two distances agree to the rounding of f32,
// (dim + 2) 2^-24 of a squared distance, and normalisation rounds points by 2^-24 of the
// range; that is the tolerance of one iteration. A point so moved changes the means and
// the next assignments, hence a factor of 100 and few iterations.
TEST_P(KmeansReference, HistoryEqualsBruteForce) {
  const auto [kernels, shape] = GetParam();
  const auto points = normal_points(shape.n_points, shape.dim, 40 + shape.n_points, 3);
  const auto weights = decade_weights(shape.n_points, 41);
  const auto problem = make_problem(points, shape.dim, shape.n_centroids, &weights);
  KmeansSolver solver;
  KmeansOptions options;
  options.kernels = kernels;
  options.tolerance = 0;
  options.max_iterations = 0;
  const auto start = solver.solve(problem, options);
  ASSERT_TRUE(start.ok());
  options.max_iterations = 8;
  const auto result = solver.solve(problem, options);
  ASSERT_TRUE(result.ok());
  Reference reference(problem, start->centroids);
  const double tolerance = 100 * (shape.dim + 2) * 0x1p-24;
  double last = start->start_objective;
  for (std::size_t i = 0; i < result->history.size() && result->n_refilled == 0; i++) {
    last = reference.iterate();
    EXPECT_NEAR(result->history[i], last, tolerance * last + 1e-12 * result->spread)
        << "iteration " << i;
  }
  if (result->n_refilled == 0) {
    EXPECT_NEAR(result->objective, last, tolerance * last + 1e-12 * result->spread);
  }
}

class KmeansLevels : public testing::TestWithParam<const kmeans::Kernels*> {};

INSTANTIATE_TEST_SUITE_P(Levels, KmeansLevels, testing::ValuesIn(kmeans::supported_kernels()),
                         [](const auto& level) {
                           return std::string(isa::level_name(level.param->level));
                         });

// The same start (draws hit the same points unless rounding moves a boundary over one,
// which these seeds do not), then one iteration within rounding as above; at the end,
// local minima of the same quality.
TEST_P(KmeansLevels, AgreesWithScalar) {
  for (const int dim : {1, 2, 3, 4, 8, 16}) {
    const auto points = normal_points(4000, dim, 50 + dim, 10);
    const auto weights = decade_weights(4000, 51, 1e-9);
    const auto problem = make_problem(points, dim, 64, &weights);
    for (const int max_iterations : {0, 1, 100}) {
      KmeansSolver solver;
      KmeansOptions options;
      options.max_iterations = max_iterations;
      options.kernels = GetParam();
      const auto result = solver.solve(problem, options);
      options.kernels = &kmeans::kScalarKernels;
      const auto scalar = solver.solve(problem, options);
      ASSERT_TRUE(result.ok() && scalar.ok());
      if (max_iterations == 0) {
        EXPECT_EQ(result->centroids, scalar->centroids) << "dim " << dim;
      }
      const double relative = max_iterations == 100 ? 0.01 : 4 * (dim + 2) * 0x1p-24;
      EXPECT_NEAR(result->objective, scalar->objective, relative * scalar->objective)
          << "dim " << dim << ", iterations " << max_iterations;
    }
  }
}

// Both fuse products into sums, lane by lane in the same order.
TEST(KmeansLevelsAvx, Avx512EqualsAvx2) {
  const auto levels = kmeans::supported_kernels();
  const auto find = [&](isa::Level wanted) {
    const auto at = std::find_if(levels.begin(), levels.end(),
                                 [&](const auto* level) { return level->level == wanted; });
    return at == levels.end() ? nullptr : *at;
  };
  if (find(isa::Level::kAvx512) == nullptr) {
    GTEST_SKIP() << "no AVX-512 here";
  }
  const auto points = normal_points(5000, 8, 60);
  KmeansSolver solver;
  KmeansOptions options;
  options.kernels = find(isa::Level::kAvx512);
  const auto wide = solver.solve(make_problem(points, 8, 256), options);
  options.kernels = find(isa::Level::kAvx2);
  const auto narrow = solver.solve(make_problem(points, 8, 256), options);
  ASSERT_TRUE(wide.ok() && narrow.ok());
  EXPECT_EQ(wide->centroids, narrow->centroids);
}

}  // namespace
}  // namespace cqkv
