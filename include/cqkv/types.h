// The small types shared by all parts: how a head is cut into groups and coded,
// and which half of the cache is meant. No codebook here; see codebook.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "cqkv/status.h"

namespace cqkv {

/// Keys or values.
enum class KvKind { kKey, kValue };

std::string_view kv_kind_name(KvKind kind);  // "key", "value"

inline constexpr int kMaxCodeBits = 12;
inline constexpr int kMaxGroupDim = 16;

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
  /// anything else: group_dim 1, 2, 4, 8 or 16 and code_bits 1 to 12.
  static Result<CodecSpec> parse(std::string_view text);

  /// Whether a head of `head_dim` channels can be coded so: legal values, and
  /// `group_dim` divides `head_dim`.
  Status check(int head_dim) const;
};

}  // namespace cqkv
