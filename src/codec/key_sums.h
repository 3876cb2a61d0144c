// Values predicted from coded keys: what one layer needs for attention to add, to the sums over
// values, sums over the decoded keys of chosen groups of all KV heads, times a matrix. Built once
// for a codebook; how the sums are taken is in attention/cpu/key_sum_step.h, where the matrices
// come from is not known here.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "cqkv/codebook.h"
#include "cqkv/status.h"

#include "codec/byte_tables.h"
#include "kernels/kernel_table.h"

namespace cqkv {

/// The value of token t and KV head h is, where it is seen coded,
///
///     v_t,h = C_h[code_t,h] + M_h K_t
///
/// with K_t the decoded keys, before their rotation, of the chosen groups one after the other:
/// components, if the keys have a basis.
/// Being linear in K, the second term costs a weighted sum of K_t over the tokens, and one
/// product with M_h a query head at the end:
///
///     sum_t p_t v_t,h = sum_t p_t C_h[code_t,h] + M_h sum_t p_t K_t
///
/// A token that is seen exactly has the value that its exact row says, with nothing added.
/// Const after construction. Memory: the chosen groups' centroids as floats and bytes, and the
/// matrices with rows padded to whole vectors.
class KeySums {
 public:
  /// @param keys      The codebook of the layer's keys; not kept.
  /// @param groups    Numbers kv_head * n_groups of a head + group, ascending.
  /// @param matrices  [n_kv_heads, head_dim_v, groups * group_dim], finite.
  /// @param kernel    The kernels that the byte tables are for.
  /// @return kInvalidArgument if groups are none, not ascending or not the codebook's, or there
  ///   are not as many matrix elements.
  static Result<KeySums> create(const TensorCodebook& keys, std::vector<int> groups, int head_dim_v,
                                std::span<const float> matrices,
                                const kernels::KernelTable& kernel);

  /// The chosen groups as one KV head: channels in the order of the sums.
  const TensorCodebook& centroids() const { return centroids_; }

  /// The same as bytes; null if codes are finer than bytes or not for the kernels.
  const ByteTables* tables() const { return tables_ ? &*tables_ : nullptr; }

  const std::vector<int>& groups() const { return groups_; }

  /// Whether the chosen groups are consecutive.
  bool is_run() const {
    return groups_.back() - groups_.front() + 1 == static_cast<int>(groups_.size());
  }

  int n_channels() const { return centroids_.head_dim(); }

  int n_kv_heads() const { return n_kv_heads_; }

  int head_dim_v() const { return head_dim_v_; }

  /// Of the codebook that the groups were chosen from.
  int n_key_codes() const { return n_key_codes_; }

  /// M_h transposed: [n_channels rounded up to kBlockCells, matrix_stride()], zero where padded.
  const float* matrix(int kv_head) const { return matrices_.data() + kv_head * matrix_floats_; }

  std::size_t matrix_stride() const { return matrix_stride_; }

 private:
  KeySums(const TensorCodebook& keys, TensorCodebook centroids, std::vector<int> groups,
          int head_dim_v);
  void set_matrices(std::span<const float> matrices);

  TensorCodebook centroids_;
  std::optional<ByteTables> tables_;
  std::vector<int> groups_;
  int n_kv_heads_;
  int head_dim_v_;
  int n_key_codes_;
  std::size_t matrix_stride_;
  std::size_t matrix_floats_;
  std::vector<float> matrices_;
};

}  // namespace cqkv
