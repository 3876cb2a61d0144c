// See block_masks.h.
#include "attention/cpu/block_masks.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "attention/cpu/visible_blocks.h"
#include "core/half.h"

namespace cqkv {
namespace {

// The mask [64] of a block's cells for one query. If the block has a cell list, its mask must be
// gathered: the query may see its other cells in other blocks.
void gather_mask(const CallContext& context, int query, const ViewBlock& block,
                 std::uint16_t* mask) {
  const AttentionCall& call = context.call;
  const std::uint8_t* row = call.mask == nullptr
                                ? nullptr
                                : call.mask + static_cast<std::size_t>(query) * call.mask_bytes;
  for (int t = 0; t < kBlockCells; t++) {
    const std::int32_t cell = context.views.cell(block, t);
    mask[t] = cell < 0 ? kHalfMinusInfinity : 0;
    if (cell >= 0 && row != nullptr) {
      std::memcpy(mask + t, row + static_cast<std::size_t>(cell) * sizeof(*mask), sizeof(*mask));
    }
  }
}

}  // namespace

BlockMasks::BlockMasks(const CallContext& context, Carver& carver)
    : context_(context),
      mask_floats_(static_cast<std::size_t>(context.plan.tile_queries) * kBlockCells),
      coded_(carver.take<float>(context.plan.chunk_blocks * mask_floats_)),
      exact_(carver.take<float>(mask_floats_)) {
}

void BlockMasks::load(const AttentionTask& task, const ViewBlock& block, int index, bool exact) {
  const AttentionCall& call = context_.call;
  float* coded = coded_.from(index * mask_floats_);
  for (int i = 0; i < task.n_queries; i++) {
    const int query = task.first_query + i;
    std::uint16_t halves[kBlockCells];
    if (call.mask != nullptr && block.lanes < 0) {
      std::memcpy(halves,
                  call.mask + query * call.mask_bytes +
                      static_cast<std::size_t>(block.block) * sizeof(halves),
                  sizeof(halves));
    } else {
      gather_mask(context_, query, block, halves);
    }
    context_.kernel.half_to_float_n(halves, kBlockCells,
                                    coded + static_cast<std::size_t>(i) * kBlockCells);
  }
  if (exact) {
    split(task, block, coded);
  }
}

// Leaves in `coded` what is seen coded, in the exact mask what is seen exactly.
void BlockMasks::split(const AttentionTask& task, const ViewBlock& block, float* coded) {
  float* exact = exact_.data();
  std::fill_n(exact, static_cast<std::size_t>(task.n_queries) * kBlockCells, kMinusInfinity);
  for (int i = 0; i < task.n_queries; i++, coded += kBlockCells, exact += kBlockCells) {
    for (int t = 0; t < kBlockCells; t++) {
      const std::int32_t cell = context_.views.cell(block, t);
      if (cell >= 0 && is_exact(context_.call, task.first_query + i, cell)) {
        std::swap(coded[t], exact[t]);
      }
    }
  }
}

}  // namespace cqkv
