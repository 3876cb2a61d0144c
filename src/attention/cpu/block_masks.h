// What each query of a task sees of the blocks of a chunk: masks of the cells that it sees coded
// and of those that it sees exactly. Which blocks are looked at is in visible_blocks.h.
#pragma once

#include <cstddef>

#include "attention/cpu/memory.h"
#include "attention/cpu/task.h"

namespace cqkv {

// The masks of one thread.
class BlockMasks {
 public:
  BlockMasks(const CallContext& context, Carver& carver);

  // The masks of block number `index` of a chunk; `exact`: cells that are seen exactly go to the
  // exact mask.
  void load(const AttentionTask& task, const ViewBlock& block, int index, bool exact);

  // [n_queries, 64] of the cells of block number `index` that are seen coded.
  const float* coded(int index) const { return coded_.from(index * mask_floats_); }

  // [n_queries, 64] of the cells of the last block with any that are seen exactly.
  const float* exact() const { return exact_.data(); }

 private:
  void split(const AttentionTask& task, const ViewBlock& block, float* coded);

  const CallContext& context_;
  std::size_t mask_floats_;  // of a block
  WorkArray<float> coded_;   // [chunk_blocks, tile_queries, 64]
  WorkArray<float> exact_;   // [tile_queries, 64]
};

}  // namespace cqkv
