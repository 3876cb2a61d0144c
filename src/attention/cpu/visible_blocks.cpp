// What the queries of a tile see of the blocks of their view: masks, exact rows, angles. Part of
// AttentionOperator. A query's answers depend on the cells that it sees and on nothing else.
#include <algorithm>
#include <cstring>

#include "attention/cpu/attention_operator.h"
#include "attention/mask_view.h"
#include "core/half.h"

namespace cqkv {

bool AttentionOperator::sees_range(const Tile& tile, int range) const {
  const int last = views_.range_end(tile.view->first_range + range);
  for (int block = views_.range_begin(tile.view->first_range + range); block < last; block++) {
    if (sees(tile, block)) {
      return true;
    }
  }
  return false;
}

void AttentionOperator::scan_tile(int tile) {
  const Part part = part_of(tile, 0, 1);
  const SequenceView& view = *part.tile->view;
  for (int i = 0; i < view.n_blocks; i++) {
    visible_[part.tile->visible + static_cast<std::size_t>(i)] =
        static_cast<std::uint8_t>(scan_block(part, views_.block(view.first_block + i)));
  }
}

bool AttentionOperator::has_exact_rows(const ViewBlock& block) const {
  if (call_.exact == nullptr) {
    return false;
  }
  for (int t = 0; t < kBlockCells; t++) {
    const std::int32_t cell = views_.cell(block, t);
    if (cell >= 0 && call_.exact->rows[cell] >= 0) {
      return true;
    }
  }
  return false;
}

bool AttentionOperator::is_exact(int query, std::int32_t cell) const {
  const ExactRows& exact = *call_.exact;
  const std::int32_t row = exact.rows[cell];
  const std::int64_t ahead =
      static_cast<std::int64_t>(exact.query_positions[query]) - call_.positions[cell];
  return row >= 0 && (ahead < exact.window || exact.sinks[row] != 0);
}

// What the queries of a tile see of a block.
unsigned AttentionOperator::scan_block(const Part& part, const ViewBlock& block) const {
  const MaskView mask{call_.mask, call_.mask_bytes};
  const bool exact = has_exact_rows(block);
  const unsigned all = exact ? kSeesCoded | kSeesExact : kSeesCoded;
  unsigned seen = 0;
  for (int i = part.first_query; i < part.first_query + part.n_queries && seen != all; i++) {
    for (int t = 0; t < kBlockCells && seen != all; t++) {
      const std::int32_t cell = views_.cell(block, t);
      if (cell >= 0 && mask.sees(static_cast<std::size_t>(i), static_cast<std::size_t>(cell))) {
        seen |= exact && is_exact(i, cell) ? kSeesExact : kSeesCoded;
      }
    }
  }
  return seen;
}

// The masks [64] of a block's cells for one query. If the block has a cell list, its mask must be
// gathered: the query may see its other cells in other blocks.
void AttentionOperator::gather_mask(int query, const ViewBlock& block, std::uint16_t* mask) const {
  const std::uint8_t* row = call_.mask == nullptr
                                ? nullptr
                                : call_.mask + static_cast<std::size_t>(query) * call_.mask_bytes;
  for (int t = 0; t < kBlockCells; t++) {
    const std::int32_t cell = views_.cell(block, t);
    mask[t] = cell < 0 ? kHalfMinusInfinity : 0;
    if (cell >= 0 && row != nullptr) {
      std::memcpy(mask + t, row + static_cast<std::size_t>(cell) * sizeof(*mask), sizeof(*mask));
    }
  }
}

void AttentionOperator::load_mask(const Part& part, const ViewBlock& block, float* mask) const {
  for (int i = 0; i < part.n_queries; i++, mask += kBlockCells) {
    std::uint16_t halves[kBlockCells];
    if (call_.mask != nullptr && block.lanes < 0) {
      std::memcpy(halves,
                  call_.mask + (part.first_query + i) * call_.mask_bytes +
                      static_cast<std::size_t>(block.block) * sizeof(halves),
                  sizeof(halves));
    } else {
      gather_mask(part.first_query + i, block, halves);
    }
    kernel_.half_to_float_n(halves, kBlockCells, mask);
  }
}

void AttentionOperator::load_angles(const ViewBlock& block, const Scratch& scratch) const {
  std::int32_t positions[kBlockCells];
  for (int t = 0; t < kBlockCells; t++) {
    positions[t] = static_cast<std::int32_t>(block.base + t);
  }
  call_.rope->block(positions, scratch.cosines, scratch.sines);
}

// Leaves in the mask what is seen coded, in the exact mask what is seen exactly.
void AttentionOperator::split_exact(const Part& part, const ViewBlock& block,
                                    const Scratch& scratch) const {
  for (int i = 0; i < part.n_queries; i++) {
    float* coded = scratch.mask + static_cast<std::size_t>(i) * kBlockCells;
    float* exact = scratch.exact_mask + static_cast<std::size_t>(i) * kBlockCells;
    std::fill_n(exact, kBlockCells, kMinusInfinity);
    for (int t = 0; t < kBlockCells; t++) {
      const std::int32_t cell = views_.cell(block, t);
      if (cell >= 0 && is_exact(part.first_query + i, cell)) {
        std::swap(coded[t], exact[t]);
      }
    }
  }
}

// What the KV heads of a task share of block number `index` of a chunk: masks and angles.
void AttentionOperator::prepare_block(const Part& part, const Chunk& chunk, int index,
                                      const Scratch& scratch) const {
  const ViewBlock& block = views_.block(chunk.blocks[index]);
  load_mask(part, block,
            scratch.mask + static_cast<std::size_t>(index) * plan_.tile_queries * kBlockCells);
  const bool rotated = call_.rope != nullptr && call_.k.codec != nullptr;
  if (rotated && (!plan_.byte_keys || (chunk.seen & kSeesExact) != 0)) {
    load_angles(block, scratch);
  }
  if ((chunk.seen & kSeesExact) != 0) {
    split_exact(part, block, scratch);
  }
  if (plan_.byte_keys) {
    load_row_angles(block.base, row_angles_of(scratch, index));
  }
}

}  // namespace cqkv
