// See plan.h.
#include "attention/plan/plan.h"

#include "codec/byte_tables.h"
#include "core/round_up.h"
#include "kernels/dispatch.h"

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
// Up to so many rows the tables of a head weigh as much as the work on one block, so that
// several blocks are taken together.
constexpr int kFewRows = 8;

bool are_usable(const ByteTables* tables, int code_bits) {
  const kernels::KernelTable& kernel = kernels::active();
  return tables != nullptr && ByteTables::usable(code_bits, kernel) &&
         tables->order() == ByteTables::order_for(code_bits, kernel);
}

bool has_usable_tables(const CacheSide& side) {
  return side.codec != nullptr && side.codec->tables() != nullptr;
}

// No key sums means nothing to check.
bool has_usable_tables(const KeySums* key_sums) {
  return key_sums == nullptr ||
         are_usable(key_sums->tables(), key_sums->centroids().spec().code_bits());
}

// Tiles of up to `tile_queries` queries of one view.
void cut_tiles(const SequenceViews& views, Plan& plan) {
  for (const SequenceView& view : views.views()) {
    for (int i = 0; i < view.n_queries; i += plan.tile_queries) {
      const int n = std::min(plan.tile_queries, view.n_queries - i);
      plan.tiles.push_back({&view, view.first_query + i, n, plan.n_slices, plan.n_visible});
      plan.n_slices += view.n_ranges;
      plan.n_visible += static_cast<std::size_t>(view.n_blocks);
    }
  }
}

// Ranges of the longest view.
int largest_tile(const SequenceViews& views) {
  int n = 0;
  for (const SequenceView& view : views.views()) {
    n = std::max(n, view.n_ranges);
  }
  return n;
}

int most_queries(const SequenceViews& views) {
  int n = 1;
  for (const SequenceView& view : views.views()) {
    n = std::max(n, view.n_queries);
  }
  return n;
}

}  // namespace

Plan::Plan(const AttentionCall& call, const SequenceViews& views, int n_threads)
    : heads_per_kv(call.n_heads / call.n_kv_heads),
      channels_v(round_up(call.head_dim_v, kernels::kChannelLanes)),
      sum_channels(call.key_sums == nullptr
                       ? 0
                       : round_up(call.key_sums->n_channels(), kernels::kChannelLanes)),
      channels(channels_v + sum_channels),
      value_stride(channels_v + kernels::kChannelLanes),
      sum_stride(sum_channels > 0 ? sum_channels + kernels::kChannelLanes : 0),
      tile_queries(std::clamp(kTileRows / heads_per_kv, 1, most_queries(views))),
      tile_rows(tile_queries * heads_per_kv),
      byte_keys(has_usable_tables(call.k)),
      byte_values(has_usable_tables(call.v) && has_usable_tables(call.key_sums)) {
  cut_tiles(views, *this);
  if (byte_keys) {
    padded_pairs = round_up(static_cast<int>(call.k.codec->tables()->pairs().pairs.size()),
                            kernels::kQueryLanes);
  }
  if (byte_keys && byte_values && tile_rows <= kFewRows) {
    chunk_blocks = kernels::kMaxChunk;
  }
  const int wanted = n_threads == 1 ? 1 : kTasksPerThread * n_threads;
  n_kv_groups = tile_rows >= kManyRows ? call.n_kv_heads : 1;
  const std::size_t n_partials = static_cast<std::size_t>(n_slices) * call.n_kv_heads;
  // A tile that is more than a task's share of the work keeps one thread busy when all others
  // are done: a long sequence beside short ones, or the only one.
  split_ranges =
      std::int64_t{largest_tile(views)} * wanted > std::int64_t{n_slices} * n_kv_groups &&
      n_slices > n_tiles() && n_partials * partial_floats() <= kMaxPartialFloats;
  const int n = std::max(n_tasks(), 1);
  if (n < wanted) {
    const int missing = (wanted + n - 1) / n;
    n_kv_groups = std::min(call.n_kv_heads, n_kv_groups * missing);
  }
  kv_per_task = (call.n_kv_heads + n_kv_groups - 1) / n_kv_groups;
  n_kv_groups = (call.n_kv_heads + kv_per_task - 1) / kv_per_task;
}

}  // namespace cqkv
