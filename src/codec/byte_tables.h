// Centroids as 8-bit numbers, in the memory order of the kernels that look them up, and how
// the channels of a key head form pairs for them. Built once for a codebook (and a rotation);
// the integer part of attention reads nothing else of a codebook. What the roundings cost is
// in docs/kernels.md.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "cqkv/codebook.h"

#include "kernels/dispatch.h"
#include "rope/rope.h"

namespace cqkv {

/// The channels of a key head in pairs: those that are rotated together, then the rest. With
/// an odd number of channels the last pair is one channel twice.
struct KeyPairs {
  std::vector<kernels::ChannelPair> pairs;
  /// Of those rotated, how many turn within a block; the others are rotated as if at its centre.
  int n_turning = 0;
  std::optional<RopeParams> rope;

  /// Pairs that are rotated.
  int n_rotated() const { return rope ? rope->n_dims / 2 : 0; }

  /// `rope` null: nothing is rotated.
  static KeyPairs of(int head_dim, const RopeParams* rope);

  /// Whether these are the pairs of that rotation (of a head of the same size).
  bool fit(const RopeParams* rope) const;
};

/// The centroids of one cache tensor as bytes:
///
///     centroid value of component d = scales[d] * byte, |byte| <= 127
///
/// (without a basis, cqkv/basis.h, components are channels) with the largest centroid of a
/// component, or of both of a pair of keys, at 127: the error of a value is at most scales[d] / 2.
///
/// error() compares this with the distance between centroids.
///
/// Const after construction. Memory: one byte a centroid channel, at least 256 a
/// channel.
class ByteTables {
 public:
  /// Whether the kernels can use byte tables of codes of that many bits.
  static bool usable(int code_bits, const kernels::KernelTable& kernel) {
    return code_bits > 0 && kernels::integer_kernels(kernel, code_bits) != nullptr;
  }

  /// The order in which they read them.
  static kernels::TableOrder order_for(int code_bits, const kernels::KernelTable& kernel) {
    return kernels::integer_kernels(kernel, code_bits)->table_order;
  }

  /// Tables of keys or values of a usable codec for the kernels; `rope` is the keys' rotation, or
  /// null.
  static ByteTables of(const TensorCodebook& codebook, KvKind kind, const RopeParams* rope,
                       const kernels::KernelTable& kernel);

  /// Tables of keys, whose scales are shared by pairs.
  static ByteTables keys(const TensorCodebook& codebook, KeyPairs pairs, kernels::TableOrder order);

  /// Tables of values.
  static ByteTables values(const TensorCodebook& codebook, kernels::TableOrder order);

  kernels::TableOrder order() const { return order_; }

  /// Keys: their pairs, of channels. Values: none.
  const KeyPairs& pairs() const { return pairs_; }

  /// Keys: the same pairs as components of that head (TensorBasis), as the tables and scales are.
  const kernels::ChannelPair* component_pairs(int kv_head) const {
    return component_pairs_.data() + static_cast<std::size_t>(kv_head) * pairs_.pairs.size();
  }

  /// Of all KV heads.
  int n_channels() const { return n_channels_; }

  /// Keys: whether kernels take their pairs in the order of components, in which the two of a pair
  /// stand side by side in every head. That is what kernels that load whole groups want; those
  /// that look channels up one by one take pairs in the order of the rotation.
  bool takes_components() const { return !places_.empty(); }

  /// Then: the place of each of pairs() among the pairs (0, 1), (2, 3), ... of components.
  const std::uint16_t* places(int kv_head) const {
    return places_.data() + static_cast<std::size_t>(kv_head) * pairs_.pairs.size();
  }

  /// Then: these pairs, of all heads alike.
  const kernels::ChannelPair* component_run() const { return component_run_.data(); }

  /// Then: RopeTable::centred of these pairs of a head, packed for the kernels; pairs that do not
  /// turn have the angle 0. Only with a rotation.
  const std::int16_t* angles(int kv_head) const {
    return angles_.data() + static_cast<std::size_t>(kv_head) * angle_words();
  }

  /// Channels of one entry of a table: larger groups are cut into parts of that size, which have
  /// the same codes.
  int entry_dim(int group_dim) const { return std::min(group_dim, most_entry_dim_); }

  const std::int8_t* table(int kv_head) const { return bytes_.data() + kv_head * head_bytes_; }

  /// [head_dim rounded up to kChannelLanes], zero after the last channel.
  const float* scales(int kv_head) const { return scales_.data() + kv_head * padded_; }

  /// The largest over groups of
  ///
  ///     sum over the group's channels of scales[d]^2 / 12
  ///     / mean squared distance of a centroid to the nearest other one
  ///
  /// i.e. the mean squared error of the bytes against what telling centroids apart is about.
  /// Up to 64 centroids a group are looked at. Beside heads of larger groups those of one channel a
  /// code do not count: they are as precise as bytes are, and all heads would pay for floats.
  float error() const { return error_; }

  /// Tables with a larger error are not worth using: the codes are finer than bytes.
  static constexpr float kMaxError = 0.06F;

  bool precise() const { return error_ <= kMaxError; }

 private:
  ByteTables(const TensorCodebook& codebook, kernels::TableOrder order);
  void set_component_pairs(const TensorCodebook& codebook);
  bool find_places(const TensorCodebook& codebook);
  void take_components(const TensorCodebook& codebook, const kernels::KernelTable& kernel);
  void pack_angles(const kernels::KernelTable& kernel);

  std::size_t angle_words() const {
    return kernels::packed_angle_words(static_cast<int>(pairs_.pairs.size()));
  }

  void set_scales(const TensorCodebook& codebook);
  void set_bytes(const TensorCodebook& codebook);
  void set_error(const TensorCodebook& codebook);
  float group_error(const TensorCodebook& codebook, int kv_head, int group) const;

  kernels::TableOrder order_;
  KeyPairs pairs_;
  std::vector<kernels::ChannelPair> component_pairs_;  // [kv_head, pair]
  std::vector<kernels::ChannelPair> component_run_;    // (0, 1), (2, 3), ...
  std::vector<std::uint16_t> places_;                  // [kv_head, pair], or empty
  std::vector<std::int16_t> angles_;                   // [kv_head, angle_words()]
  int most_entry_dim_;
  int n_channels_;
  int n_entries_;  // of a table
  std::size_t head_bytes_;
  std::size_t padded_;
  std::vector<std::int8_t> bytes_;
  std::vector<float> scales_;
  float error_ = 0.0F;
};

}  // namespace cqkv
