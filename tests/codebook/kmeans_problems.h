// Random problems shared by the tests of k-means.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "codebook/kmeans.h"
#include "core/rng.h"

namespace cqkv {

inline std::vector<float> normal_points(std::size_t n, int dim, std::uint64_t seed,
                                        float offset = 0) {
  Rng rng(seed);
  std::vector<float> points(n * dim);
  for (float& value : points) {
    value = offset + static_cast<float>(rng.normal());
  }
  return points;
}

inline std::vector<float> decade_weights(std::size_t n, std::uint64_t seed, double factor = 1) {
  Rng rng(seed);
  std::vector<float> weights(n);
  for (float& weight : weights) {
    weight = static_cast<float>(factor * std::exp(2 * rng.normal()));
  }
  return weights;
}

inline KmeansProblem make_problem(const std::vector<float>& points, int dim, int n_centroids,
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

}  // namespace cqkv
