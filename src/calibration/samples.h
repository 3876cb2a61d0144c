// Collecting the rows that a capture or a gradient run delivers, with their weights,
// until the codebooks are learned from them.
#pragma once

#include <cstddef>
#include <map>
#include <utility>
#include <vector>

#include "cqkv/status.h"
#include "cqkv/types.h"

#include "calibration/kv_rows.h"

namespace cqkv {

/// All rows of the keys or values of one layer.
struct TensorSamples {
  KvShape shape;
  std::size_t n_rows = 0;
  std::vector<float> rows;     ///< [n_rows, n_channels].
  std::vector<float> weights;  ///< [n_rows, n_codes], or empty: all 1.
};

/// A KvSink that keeps rows and, where gradients come along, one weight per group of
/// channels and token, the group's diagonal Fisher information (paper, equation 6):
///
///     weight[t][g] = sum over channels c of group g of gradient[t][c]^2
///
/// The gradients themselves are not kept. Tensors whose codec is exact are skipped.
class SampleCollector {
 public:
  using Key = std::pair<int, KvKind>;  // layer, kind

  /// @param n_rows  Of each tensor in all, to allocate once.
  SampleCollector(CodecSpec key_spec, CodecSpec value_spec, std::size_t n_rows)
      : key_spec_(key_spec), value_spec_(value_spec), n_rows_(n_rows) {}

  /// @return kInvalidArgument if groups do not divide the heads, or the shape of a
  ///   layer changed; kCorrupt if a row is not finite.
  Status add(const KvRows& rows);

  const CodecSpec& spec(KvKind kind) const {
    return kind == KvKind::kKey ? key_spec_ : value_spec_;
  }

  std::map<Key, TensorSamples>& tensors() { return tensors_; }

 private:
  CodecSpec key_spec_;
  CodecSpec value_spec_;
  std::size_t n_rows_;
  std::map<Key, TensorSamples> tensors_;
};

}  // namespace cqkv
