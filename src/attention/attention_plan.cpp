// See attention_plan.h.
#include "attention/attention_plan.h"

namespace cqkv {
namespace {

// Rows (queries times heads of a KV head) that share one decoded block: with 128,
// decoding and rotating is a few percent of the work.
constexpr int kTileRows = 128;
// From this many rows on, a task takes a single KV head: sharing the angles of a
// block over KV heads no longer pays.
constexpr int kManyRows = 32;
// Tasks a thread should have at least, so that unequal ones balance.
constexpr int kTasksPerThread = 3;
// Limit of the states kept for merging; beyond it ranges are not run in parallel.
constexpr std::size_t kMaxPartialFloats = std::size_t{4} << 20U;

int round_up(int n, int multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace

Plan::Plan(const AttentionCall& call, int n_threads)
    : heads_per_kv(call.n_heads / call.n_kv_heads),
      channels_v(round_up(call.head_dim_v, kernels::kChannelLanes)),
      value_stride(channels_v + kernels::kChannelLanes),
      tile_queries(std::clamp(kTileRows / heads_per_kv, 1, call.n_queries)),
      tile_rows(tile_queries * heads_per_kv),
      n_tiles((call.n_queries + tile_queries - 1) / tile_queries),
      n_blocks(static_cast<int>((call.n_cells + kBlockCells - 1) / kBlockCells)),
      n_ranges((n_blocks + kBlocksPerRange - 1) / kBlocksPerRange) {
  const int wanted = n_threads == 1 ? 1 : kTasksPerThread * n_threads;
  n_kv_groups = tile_rows >= kManyRows ? call.n_kv_heads : 1;
  const std::size_t n_partials = static_cast<std::size_t>(n_tiles) * call.n_kv_heads * n_ranges;
  split_ranges = n_tiles * n_kv_groups < wanted && n_ranges > 1 &&
                 n_partials * partial_floats() <= kMaxPartialFloats;
  if (n_tasks() < wanted) {
    const int missing = (wanted + n_tasks() - 1) / n_tasks();
    n_kv_groups = std::min(call.n_kv_heads, n_kv_groups * missing);
  }
  kv_per_task = (call.n_kv_heads + n_kv_groups - 1) / n_kv_groups;
  n_kv_groups = (call.n_kv_heads + kv_per_task - 1) / kv_per_task;
}

}  // namespace cqkv
