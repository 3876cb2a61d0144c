// Weighted k-means for one small problem (some 32768 points of up to 16 channels, up
// to 4096 centroids). A codebook needs thousands of them: learn.h runs one solver per
// thread over them. Encoding with the result is TensorCodebook's.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cqkv/status.h"

#include "isa/level.h"

namespace cqkv {

namespace kmeans {
struct Kernels;
}

/// Points and what is wanted of them. Nothing is owned.
struct KmeansProblem {
  /// Point p is at points + p * point_stride, `dim` channels; all finite.
  const float* points = nullptr;
  std::size_t n_points = 0;
  std::size_t point_stride = 0;
  int dim = 0;  ///< 1 to 16.
  /// Weight of point p is weights[p * weight_stride], finite and >= 0; null: all 1.
  const float* weights = nullptr;
  std::size_t weight_stride = 1;
  int n_centroids = 0;  ///< 1 to 4096; any number, not only powers of two.
};

struct KmeansOptions {
  int max_iterations = 100;  ///< At least 0; the paper's number.
  /// Stops when an iteration lowers the objective by no more than this share of it. From
  /// 1e-4 there is about 0.1 % of the objective left to gain, from 1e-5 next to nothing.
  double tolerance = 1e-5;
  std::uint64_t seed = 1;
  std::uint64_t stream = 0;                      ///< Problems of one run use different streams.
  const std::atomic<bool>* cancelled = nullptr;  ///< Looked at once an iteration.
  const kmeans::Kernels* kernels = nullptr;      ///< Null: those of active_isa().
};

struct KmeansResult {
  std::vector<float> centroids;  ///< [n_centroids, dim], in no particular order.
  /// Weighted squared error at the k-means++ start and at the end, in the units given.
  double start_objective = 0;
  double objective = 0;
  /// Weighted squared distance to the weighted mean: the objective of one centroid.
  double spread = 0;
  int iterations = 0;             ///< Iterations done; see `history`.
  bool converged = false;         ///< Stopped by itself, not by max_iterations.
  bool uniform_fallback = false;  ///< All weights were zero: taken as all 1.
  int n_refilled = 0;             ///< Times a centroid without points was moved.
  std::size_t n_points = 0;       ///< Points with a weight above zero.
  std::vector<double> history;    ///< Objective after each iteration; never rises.
};

/// Lloyd's algorithm on weighted points from a weighted k-means++ start.
///
///     minimise  sum over p of w_p |x_p - c(x_p)|^2,   c(x) the centroid nearest to x
///
/// An iteration assigns every point to its nearest centroid and moves every centroid to
/// the weighted mean of its points. Centroids without points are moved to the points
/// with the largest weighted errors, each to another; if there is no error they stay,
/// so with fewer distinct points than centroids some coincide. Points of weight zero
/// are as if absent. Which points need measuring is decided with triangle-inequality
/// bounds, which changes no result (Hamerly 2010; Ding et al. 2015, "Yinyang").
///
/// A solver keeps its buffers between problems; one thread at a time may use it.
/// Memory: about n_points * (4 dim + 26 + 4 * n_groups) bytes; n_groups is 16 up to 256
/// centroids, 32 to 64 above.
class KmeansSolver {
 public:
  KmeansSolver();
  ~KmeansSolver();
  KmeansSolver(const KmeansSolver&) = delete;
  KmeansSolver& operator=(const KmeansSolver&) = delete;
  KmeansSolver(KmeansSolver&&) noexcept;
  KmeansSolver& operator=(KmeansSolver&&) noexcept;

  /// @return kInvalidArgument for illegal sizes, or naming the first point or weight
  ///   that is not finite or a weight below zero; kCancelled.
  ///
  /// Numerics: points are taken relative to their weighted mean and scaled by a power of
  ///   two, weights relative to their mean, so neither large offsets nor weights like
  ///   1e-30 lose precision. Distances in f32; sums, means and objectives in f64. The
  ///   final means are those of the points as given. The same seed and stream give the
  ///   same bits on one instruction set, and on AVX2 and AVX-512 alike; the scalar level
  ///   rounds differently and may, after many iterations, find another local minimum.
  /// Cost: the start measures n_points * n_centroids distances, the second iteration up to
  ///   as many, later ones a few per cent of that.
  /// Source: Coupled Quantization (arXiv 2405.03917), section 3.2.1, equations 5 and 6.
  Result<KmeansResult> solve(const KmeansProblem& problem, const KmeansOptions& options);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

namespace kmeans {

/// The kernels in use unless an option names others: those for cqkv::active_isa().
const Kernels& active_kernels();

/// The best kernels at or below `level` (isa/select.h).
const Kernels& kernels_for(isa::Level level);

/// All that are compiled in and that this processor can run, best first; the last are scalar.
std::vector<const Kernels*> supported_kernels();

}  // namespace kmeans
}  // namespace cqkv
