// The small types shared by all parts: how a head is cut into groups and coded,
// and which half of the cache is meant. No codebook here; see codebook.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cqkv/status.h"

namespace cqkv {

/// Keys or values.
enum class KvKind { kKey, kValue };

std::string_view kv_kind_name(KvKind kind);  // "key", "value"

inline constexpr int kMaxCodeBits = 12;
inline constexpr int kMaxGroupDim = 64;

/// How the channels of one head are coded: `group_dim` contiguous channels
/// together by the index of one of 2^code_bits centroids. The paper's CQ-<c>c<b>b.
///
/// `code_bits` 0 means exact: the rows are kept as 16-bit floats.
struct CodecSpec {
  int group_dim = 0;
  int code_bits = 0;

  bool exact() const { return code_bits == 0; }

  int n_centroids() const { return 1 << code_bits; }

  double bits_per_channel() const {
    return exact() ? 16.0 : static_cast<double>(code_bits) / group_dim;
  }

  bool operator==(const CodecSpec&) const = default;

  /// "8c8b", or "exact".
  std::string name() const;

  /// Reads "8c8b" or "exact". kInvalidArgument, naming the legal values, for
  /// anything else: group_dim 1, 2, 4, 8, 16, 32 or 64 and code_bits 1 to 12.
  static Result<CodecSpec> parse(std::string_view text);

  /// Whether a head of `head_dim` channels can be coded so: legal values, and
  /// `group_dim` divides `head_dim`.
  Status check(int head_dim) const;
};

/// How the keys or the values of one layer are coded: codes of one width for all KV heads, groups
/// of a size of its own for each. A head with larger groups has fewer codes, a lower rate. A head
/// may have no codes at all: then every row of it is the same, its mean.
///
/// Codes are counted over all heads: those of head h are [first_code(h), first_code(h + 1)).
class TensorSpec {
 public:
  TensorSpec() = default;

  /// All heads alike. Not exact.
  TensorSpec(CodecSpec spec, int n_kv_heads, int head_dim);

  /// @param group_dims  Of each KV head; 0: no codes.
  TensorSpec(int code_bits, const std::vector<int>& group_dims, int head_dim);

  int code_bits() const { return code_bits_; }

  int n_centroids() const { return 1 << code_bits_; }

  int head_dim() const { return head_dim_; }

  int n_kv_heads() const { return static_cast<int>(group_dims_.size()); }

  /// Channels of one row.
  int n_channels() const { return n_kv_heads() * head_dim_; }

  /// Whether a head has codes.
  bool coded(int kv_head) const { return group_dims_[static_cast<std::size_t>(kv_head)] != 0; }

  /// Channels of a group. Of a head without codes the most that a group can have: it is then as if
  /// it had groups of this size, and no row another code than 0.
  int group_dim(int kv_head) const {
    return coded(kv_head) ? group_dims_[static_cast<std::size_t>(kv_head)] : largest_group_dim_;
  }

  /// As they were given: 0 for a head without codes.
  const std::vector<int>& group_dims() const { return group_dims_; }

  CodecSpec spec(int kv_head) const { return {group_dim(kv_head), code_bits_}; }

  /// Groups of a head.
  int n_groups(int kv_head) const { return head_dim_ / group_dim(kv_head); }

  /// Codes of one row of a head: one for each group, or none.
  int n_codes(int kv_head) const { return coded(kv_head) ? n_groups(kv_head) : 0; }

  /// Centroids of each group of a head: without codes one, the mean.
  int n_centroids(int kv_head) const { return coded(kv_head) ? n_centroids() : 1; }

  /// Numbers that all centroids of a head have together.
  std::size_t n_centroid_values(int kv_head) const {
    return static_cast<std::size_t>(head_dim_) * static_cast<std::size_t>(n_centroids(kv_head));
  }

  int first_code(int kv_head) const { return first_codes_[static_cast<std::size_t>(kv_head)]; }

  /// Codes of one row.
  int n_codes() const { return first_codes_.back(); }

  double bits_per_channel() const {
    return static_cast<double>(n_codes()) * code_bits_ / n_channels();
  }

  /// Whether all heads have codes and groups of one size.
  bool uniform() const;

  /// "8c8b", or "2c8b to 64c8b" where heads differ, "mean to 64c8b" where some have no codes.
  std::string name() const;

  bool operator==(const TensorSpec&) const = default;

 private:
  int code_bits_ = 0;
  int head_dim_ = 0;
  int largest_group_dim_ = 1;
  std::vector<int> group_dims_;         // [kv_head]
  std::vector<int> first_codes_ = {0};  // [kv_head + 1]
};

}  // namespace cqkv
