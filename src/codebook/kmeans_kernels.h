// The table of k-means kernels, one per instruction set, as src/kernels has for
// attention. Included by the per-instruction-set files, so plain data and raw
// pointers only. The algorithm around the kernels is in kmeans.cpp; their one
// text is kmeans_kernels-inl.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa/level.h"

namespace cqkv::kmeans {

/// Points of one seeding block and centroids of one table block.
inline constexpr int kLanes = 16;

/// Seeding blocks whose weighted distances are summed together.
inline constexpr std::size_t kChunkBlocks = 32;

/// Largest number of centroids of one bound group.
inline constexpr int kMaxGroupSize = 64;

/// Largest number of bound groups, padded to kLanes.
inline constexpr int kMaxRowGroups = 64;

/// One step of k-means++: distances of all points to the newest centroid.
struct SeedArgs {
  const float* blocks;   ///< [n_blocks, dim, kLanes], the points with lanes innermost.
  const float* weights;  ///< [n_blocks * kLanes]; 0 for padding.
  std::size_t n_blocks;
  const float* centroid;  ///< [dim], the newest.
  float index;            ///< Its index: a float, for lanes of one kind.
  float* owner;           ///< [n_blocks * kLanes], index of the nearest; in and out.
  float* nearest;         ///< [n_blocks * kLanes], squared distance to the nearest; in and out.
  double* chunk_sums;     ///< [ceil(n_blocks / kChunkBlocks)], sum of weight * nearest; out.
};

/// One assignment step with bounds.
///
/// Centroids are cut into groups of `group_size` (a power-of-two multiple of kLanes);
/// each point keeps a lower bound of its distance to every group, its own centroid
/// left out. Bounds are stored plus the movement their group had made by then, so
/// that time passing needs no writes: bound now = stored - movement now.
struct AssignArgs {
  const float* points;  ///< [n_points, dim].
  std::size_t n_points;
  const float* centroids;  ///< [n_groups * group_size, dim]; padding is infinite.
  const float* tables;     ///< [n_groups * group_size / kLanes, dim, kLanes], the same.
  /// [n_centroids, row_groups] or null: distance of a centroid to the others of each group.
  /// If given, bounds start from it (triangle inequality) and `group_lower` is only output.
  const float* between;
  int group_size;
  int row_groups;                ///< Groups padded to kLanes: the length of a bound row.
  const float* centroid_travel;  ///< Summed movement of each centroid.
  const float* group_travel;     ///< [row_groups], summed largest movement in each group.
  float travel;                  ///< Summed largest movement of all.
  std::uint16_t* assignment;     ///< [n_points], in and out.
  float* upper;        ///< [n_points], distance to the own centroid, less its travel; in and out.
  float* lower;        ///< [n_points], bound of all other distances, plus travel; in and out.
  float* group_lower;  ///< [n_points, row_groups], per group; padding +inf; in and out.
};

/// Weighted sums of each cluster.
struct SumArgs {
  const float* points;   ///< [n_points, dim].
  const float* weights;  ///< [n_points].
  const std::uint16_t* assignment;
  std::size_t n_points;
  double* sums;           ///< [n_clusters, dim], zero on entry.
  double* mass;           ///< [n_clusters], zero on entry.
  std::uint32_t* counts;  ///< [n_clusters], zero on entry.
};

/// `dim` of every kernel is 1, 2, 4, ... or 64; squared distances are summed channel
/// by channel in f32. Levels differ in whether multiply and add round once or twice.
struct Kernels {
  isa::Level level;
  void (*seed)(int dim, const SeedArgs& args) noexcept;
  /// Moves each point to its nearest centroid; returns how many changed centroid.
  std::size_t (*assign)(int dim, const AssignArgs& args) noexcept;
  void (*sum)(int dim, const SumArgs& args) noexcept;
};

/// Baseline of the platform; always compiled.
extern const Kernels kScalarKernels;
/// AVX2 and FMA.
extern const Kernels kAvx2Kernels;
/// AVX-512 F, BW, DQ and VL.
extern const Kernels kAvx512Kernels;

}  // namespace cqkv::kmeans
