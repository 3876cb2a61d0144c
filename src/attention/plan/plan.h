// How an attention call is cut into tasks: tiles of queries of one view, ranges of positions, KV
// heads. Who computes them, and in which memory, is in attention/cpu. Internal to the attention
// folders.
#pragma once

#include <cstddef>
#include <vector>

#include "attention/attention.h"
#include "attention/plan/sequence_views.h"
#include "core/round_up.h"
#include "kernels/kernel_table.h"

namespace cqkv {

// Some consecutive queries of a view, which share decoded blocks.
struct Tile {
  const SequenceView* view = nullptr;
  int first_query = 0;
  int n_queries = 0;
  int first_slice = 0;      // of the view's ranges, counted over all tiles
  std::size_t visible = 0;  // where what it sees of the view's blocks begins
};

// How a call is cut. May throw std::bad_alloc.
struct Plan {
  int heads_per_kv = 0;
  int channels_v = 0;    // head_dim_v padded
  int sum_channels = 0;  // of the sums over keys, padded; none: 0
  int channels = 0;      // of a softmax state: both
  int value_stride = 0;  // a row of the values' tile
  int sum_stride = 0;    // a row of the tile of keys to be summed
  int tile_queries = 0;
  int tile_rows = 0;
  int kv_per_task = 0;
  int n_kv_groups = 0;
  bool split_ranges = false;
  bool byte_keys = false;    // coded keys with byte tables
  bool byte_values = false;  // coded values with byte tables, and keys to be summed too
  int padded_pairs = 0;      // pairs of key channels, of byte keys, rounded up
  int chunk_blocks = 1;      // blocks that a task may take together
  std::vector<Tile> tiles;
  int n_slices = 0;           // ranges of all tiles
  std::size_t n_visible = 0;  // blocks of all tiles

  Plan(const AttentionCall& call, const SequenceViews& views, int n_threads);

  // Words of the packed angles of a block.
  std::size_t angle_words() const {
    return byte_keys ? kernels::packed_angle_words(padded_pairs) : 0;
  }

  int n_tiles() const { return static_cast<int>(tiles.size()); }

  int n_tasks() const { return (split_ranges ? n_slices : n_tiles()) * n_kv_groups; }

  // Floats of the state of one (tile, KV head, range), rounded to whole cache lines.
  std::size_t partial_floats() const {
    const auto lines = [](int n) { return static_cast<std::size_t>(round_up(n, 16)); };
    return 2 * lines(tile_rows) + lines(tile_rows * channels);
  }

  bool byte_sums() const { return byte_values && sum_channels > 0; }
};

}  // namespace cqkv
