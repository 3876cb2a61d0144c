// Attention of queries over cached keys and values, either of which may be codes
// or plain 16-bit rows. This is the whole operator: blocks are decoded and rotated
// once for all queries of a tile and all heads that share the KV head, scores and
// values are accumulated with an online softmax, and partial results of fixed
// ranges of positions are merged in order, so that the result of a query does not
// depend on what else is in the batch or on the number of threads.
// reference.h holds the plain oracle.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cqkv/codebook.h"
#include "cqkv/status.h"

#include "codec/exact_row.h"
#include "codec/key_sums.h"
#include "codec/tensor_codec.h"
#include "core/parallel.h"
#include "rope/rope.h"

namespace cqkv {

/// Keys or values of one layer, of the cells [0, n_cells) of one stream.
struct CacheSide {
  /// What the codes mean; keys' with tables for the call's rotation. Null for plain rows.
  const TensorCodec* codec = nullptr;
  /// First block of the stream (codes; may be null if no head has any), or the first row (plain).
  const std::uint8_t* data = nullptr;
  /// Plain rows: bytes from row to row and from head to head, f16 elements.
  std::size_t row_bytes = 0;
  std::size_t head_bytes = 0;
};

/// Exact rows beside the codes (codec/exact_row.h): query i uses the exact row of cell t if
/// the cell has one and either it is a sink or query_positions[i] - positions[t] < window;
/// every other cell that it sees counts as coded. Sides without a codec are exact anyway.
struct ExactRows {
  /// Of one side: where rows of the pool and of the batch begin; null where not coded.
  struct Side {
    const std::uint8_t* pool = nullptr;
    const std::uint8_t* batch = nullptr;
  };

  const std::int32_t* rows = nullptr;   ///< [n_cells]: < 0 none; < n_pool pool; else batch.
  const std::uint8_t* sinks = nullptr;  ///< For each row, pool and batch.
  std::int32_t n_pool = 0;
  const std::int32_t* query_positions = nullptr;  ///< [n_queries]
  int window = 0;
  Side k, v;
};

/// One call: n_queries queries of n_heads heads over one stream.
struct AttentionCall {
  int n_heads = 0;
  int n_kv_heads = 0;  ///< Divides n_heads; head h uses KV head h / (n_heads / n_kv_heads).
  int head_dim_k = 0;
  int head_dim_v = 0;
  int n_queries = 0;
  std::size_t n_cells = 0;
  float scale = 1.0F;
  /// Above 0: a scaled score s counts as softcap tanh(s / softcap), before the mask.
  float softcap = 0.0F;
  /// [n_heads], or null: a logit for each head that takes part in every softmax, with no value
  /// (learned attention sinks).
  const float* sink_logits = nullptr;

  CacheSide k;
  CacheSide v;
  /// Positions of the cells [n_cells], or null; and the rotation to apply to coded keys, null:
  /// none.
  const std::int32_t* positions = nullptr;
  const RopeTable* rope = nullptr;
  /// Null: no cell has an exact row. Needs `positions`.
  const ExactRows* exact = nullptr;
  /// Null: values are what their codes say. Else those that are seen coded are predicted from
  /// the keys besides; needs codes on both sides.
  const KeySums* key_sums = nullptr;

  /// f32, element (head h, query i, channel d) at queries + h * query_head_bytes + i * query_bytes
  /// + 4 d.
  const std::uint8_t* queries = nullptr;
  std::size_t query_bytes = 0;
  std::size_t query_head_bytes = 0;
  /// f16, added to the scaled scores; element (query i, cell t) at mask + i * mask_bytes + 2 t.
  /// -inf: not visible. Null: every cell is visible.
  const std::uint8_t* mask = nullptr;
  std::size_t mask_bytes = 0;
  /// f32, element (head h, query i, channel d) at out + h * out_head_bytes + i * out_bytes + 4 d.
  std::uint8_t* out = nullptr;
  std::size_t out_bytes = 0;
  std::size_t out_head_bytes = 0;
};

/// Scratch memory of `attend`, grown as needed and kept between calls. One call at a time.
class AttentionWorkspace {
 public:
  AttentionWorkspace();
  ~AttentionWorkspace();
  AttentionWorkspace(AttentionWorkspace&&) noexcept;
  AttentionWorkspace& operator=(AttentionWorkspace&&) noexcept;
  AttentionWorkspace(const AttentionWorkspace&) = delete;
  AttentionWorkspace& operator=(const AttentionWorkspace&) = delete;

 private:
  friend Status attend(const AttentionCall&, ParallelFor&, AttentionWorkspace&);
  Status run(const AttentionCall& call, ParallelFor& parallel);
  struct Impl;
  Impl* impl_;
};

/// out[h][i] = sum_t softmax_t(scale * <q[h][i], R(pos_t) k_t> + mask[i][t]) v_t,
///
/// with `key_sums` v_t + M_h K_t in the place of v_t where t is seen coded (key_sums.h); scores
/// capped with `softcap`; and exp(sink_logits[h]) more in the softmax's denominator.
///
/// A query that sees no cell gets zeros. Blocks that no query of a tile sees are skipped
/// without being decoded.
///
/// @return kInvalidArgument if shapes disagree or a codec has tables for other kernels than are in
///   use (nothing is written), kResourceExhausted if scratch memory cannot be had.
/// Numerics: f32, and 8 and 16 bits where there are byte tables (docs/kernels.md); every row
///   is computed in an order fixed by the positions of the cells that its query sees: blocks of
///   64 positions inside ranges of kRangePositions, ranges merged in order; in a block first the
///   cells that the query sees coded, then those that it sees exactly; cells at the same
///   position in the order of cells. Without positions a cell's number is its position. Which
///   cells hold a sequence, and what else is in the batch, do not matter.
/// Threads: parallel over KV heads, tiles of queries and (few queries) ranges.
Status attend(const AttentionCall& call, ParallelFor& parallel, AttentionWorkspace& workspace);

/// Positions of one partial result.
inline constexpr std::size_t kRangePositions = 512;

}  // namespace cqkv
