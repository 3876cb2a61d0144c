// See visible_blocks.h. A query's answers depend on the cells that it sees and on nothing else.
#include "attention/cpu/visible_blocks.h"

#include "attention/mask_view.h"

namespace cqkv {

void VisibleBlocks::scan(int tile) {
  const Tile& of = context_.plan.tiles[static_cast<std::size_t>(tile)];
  std::uint8_t* seen = seen_.from(of.visible);
  for (int i = 0; i < of.view->n_blocks; i++) {
    seen[i] =
        static_cast<std::uint8_t>(scan_block(of, context_.views.block(of.view->first_block + i)));
  }
}

bool VisibleBlocks::sees_range(const Tile& tile, int range) const {
  const int last = context_.views.range_end(tile.view->first_range + range);
  for (int block = context_.views.range_begin(tile.view->first_range + range); block < last;
       block++) {
    if (sees(tile, block) != 0) {
      return true;
    }
  }
  return false;
}

bool VisibleBlocks::has_exact_rows(const ViewBlock& block) const {
  const ExactRows* exact = context_.call.exact;
  for (int t = 0; t < kBlockCells && exact != nullptr; t++) {
    const std::int32_t cell = context_.views.cell(block, t);
    if (cell >= 0 && exact->rows[cell] >= 0) {
      return true;
    }
  }
  return false;
}

unsigned VisibleBlocks::scan_block(const Tile& tile, const ViewBlock& block) const {
  const AttentionCall& call = context_.call;
  const MaskView mask{call.mask, call.mask_bytes};
  const bool exact = has_exact_rows(block);
  const unsigned all = exact ? kSeesCoded | kSeesExact : kSeesCoded;
  unsigned seen = 0;
  for (int i = tile.first_query; i < tile.first_query + tile.n_queries && seen != all; i++) {
    for (int t = 0; t < kBlockCells && seen != all; t++) {
      const std::int32_t cell = context_.views.cell(block, t);
      if (cell >= 0 && mask.sees(static_cast<std::size_t>(i), static_cast<std::size_t>(cell))) {
        seen |= exact && is_exact(call, i, cell) ? kSeesExact : kSeesCoded;
      }
    }
  }
  return seen;
}

}  // namespace cqkv
