// The basis of a cache tensor: what its groups are made of. Without one, groups hold
// neighbouring channels and the nearest centroid is that of the plain distance. Choosing a
// basis is src/calibration's; coding in it is codebook.h's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cqkv/status.h"
#include "cqkv/types.h"

namespace cqkv {

/// How a row of channels becomes a row of *components*, which groups are made of, and how far two
/// vectors of components of a group are apart. By KV head, x its channels and y its components:
///
///     order:     y[i] = x[order[i]]                  for keys: their rotation works on channels
///     rotation:  y[i] = sum over d of R[i][d] x[d]   for values: what attention sums up is
///                                                    turned back once, at the end
///     metric:    |y - y'|^2 = sum over i of (sum over j of T[i][j] (y[j] - y'[j]))^2
///                                                    in each group; without: T = 1
///
/// Const after construction; all methods may run at once.
class TensorBasis {
 public:
  /// Parts as they are in files; empty: without.
  struct Parts {
    std::vector<std::uint16_t> order;     ///< [kv_head, head_dim], each channel once.
    std::vector<std::uint16_t> rotation;  ///< f16 [kv_head, component, channel], invertible.
    /// f16 [kv_head, group, group_dim, group_dim]; head_dim * group_dim numbers a head with codes,
    /// none of others.
    std::vector<std::uint16_t> metric;

    bool operator==(const Parts&) const = default;
  };

  /// Channels of a head that can be rotated, at most.
  static constexpr int kMaxRotatedDim = 512;

  /// Components are channels, distances plain; of no shape: a codebook gives it its own.
  TensorBasis() = default;

  /// @return kInvalidArgument if a size disagrees with the spec, an order is no permutation, a
  /// number is not
  ///   finite, a rotation has no inverse or is there beside an order.
  static Result<TensorBasis> create(const TensorSpec& spec, Parts parts);

  /// How many numbers a metric has.
  static std::size_t metric_size(const TensorSpec& spec);

  const TensorSpec& spec() const { return spec_; }

  const Parts& parts() const { return parts_; }

  bool has_order() const { return !parts_.order.empty(); }

  bool has_rotation() const { return !parts_.rotation.empty(); }

  bool has_metric() const { return !parts_.metric.empty(); }

  /// Whether there is nothing but channels and plain distances.
  bool plain() const { return !has_order() && !has_rotation() && !has_metric(); }

  /// Bytes of all parts in a file.
  std::size_t bytes() const;

  /// The channel of each component of a head; needs has_order().
  const std::uint16_t* order(int kv_head) const {
    return parts_.order.data() + static_cast<std::size_t>(kv_head) * head_dim_;
  }

  /// One row, [n_kv_heads * head_dim] f32 both; not in place.
  /// Numerics: sums of a rotation in f32, channels ascending.
  void to_components(const float* row, float* components) const;

  /// The inverse.
  void to_channels(const float* components, float* row) const;

  /// z[i] = sum over j of T[i][j] y[j] of one group: plain distances of z are those of the
  /// metric. Needs has_metric(); not in place.
  void to_metric(int kv_head, int group, const float* components, float* z) const;

  /// The inverse of the rotation of a head, transposed: [component, channel] f32, inverse_stride()
  /// numbers a row, zeros up to a multiple of 16 numbers and of 64 rows. Needs has_rotation().
  const float* inverse(int kv_head) const {
    return inverse_.data() + static_cast<std::size_t>(kv_head) * matrix_floats_;
  }

  std::size_t inverse_stride() const { return stride_; }

 private:
  Status set_rotations();
  Status set_rotation(int kv_head);
  void set_metric();
  void multiply(const std::vector<float>& matrices, const float* in, float* out) const;

  TensorSpec spec_;
  Parts parts_;
  std::size_t n_kv_heads_ = 0;
  std::size_t head_dim_ = 0;
  std::size_t stride_ = 0;  // of the rows of matrices
  std::size_t matrix_floats_ = 0;
  std::vector<float> rotation_;            // [kv_head, channel, component], padded as inverse_
  std::vector<float> inverse_;             // [kv_head, component, channel]
  std::vector<float> metric_;              // [kv_head, group, j, i], as to_metric reads them
  std::vector<std::size_t> metric_begin_;  // [kv_head]
};

}  // namespace cqkv
