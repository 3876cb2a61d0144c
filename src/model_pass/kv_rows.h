// What the two sources of calibration data (capture.h without gradients,
// gradient.h with them) deliver: rows of pre-RoPE keys or of values of one layer.
// How rows are collected and turned into codebooks is src/calibration's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "cqkv/status.h"
#include "cqkv/types.h"

namespace cqkv {

/// A token id, as libllama numbers them.
using Token = std::int32_t;

/// Heads of the keys or of the values of one layer.
struct KvShape {
  int n_kv_heads = 0;
  int head_dim = 0;

  int n_channels() const { return n_kv_heads * head_dim; }

  bool operator==(const KvShape&) const = default;
};

/// Some rows of one layer of one sequence. The memory belongs to the source and is
/// valid during the call of the sink only.
struct KvRows {
  int layer = 0;
  KvKind kind = KvKind::kKey;
  KvShape shape;
  std::size_t first_token = 0;  ///< Position of the first row in its sequence.
  std::size_t n_tokens = 0;
  const float* rows = nullptr;       ///< [n_tokens, n_channels], keys before RoPE.
  const float* gradients = nullptr;  ///< The loss's gradient by `rows`, same shape, or nullptr.
};

/// Receives rows; a failed Status ends the run, which then returns it. Called from
/// the thread that runs the source, never from two at once.
using KvSink = std::function<Status(const KvRows&)>;

/// kCorrupt, naming layer, token and channel, if a row or gradient is not finite.
Status check_finite(const KvRows& rows);

}  // namespace cqkv
