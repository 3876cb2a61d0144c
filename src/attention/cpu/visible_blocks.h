// Which blocks of its view a tile sees, as codes or exactly. Looked up for all tiles before any
// task begins. What each query sees of a block is in block_masks.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/cpu/call_context.h"
#include "attention/cpu/memory.h"

namespace cqkv {

// What the queries of a tile see of a block: cells as codes, and cells exactly.
inline constexpr unsigned kSeesCoded = 1;
inline constexpr unsigned kSeesExact = 2;

// Whether a query that sees a cell sees it exactly. Of a call with exact rows.
inline bool is_exact(const AttentionCall& call, int query, std::int32_t cell) {
  const ExactRows& exact = *call.exact;
  const std::int32_t row = exact.rows[cell];
  const std::int64_t ahead =
      static_cast<std::int64_t>(exact.query_positions[query]) - call.positions[cell];
  return row >= 0 && (ahead < exact.window || exact.sinks[row] != 0);
}

class VisibleBlocks {
 public:
  VisibleBlocks(const CallContext& context, Carver& carver)
      : context_(context), seen_(carver.take<std::uint8_t>(context.plan.n_visible)) {}

  // Looks up what one tile sees. Tiles may be scanned at once.
  void scan(int tile);

  // Of a block of the tile's view: kSeesCoded, kSeesExact, both, or 0.
  unsigned sees(const Tile& tile, int block) const {
    return *seen_.from(tile.visible + static_cast<std::size_t>(block - tile.view->first_block));
  }

  // Whether the tile sees anything of a range of its view.
  bool sees_range(const Tile& tile, int range) const;

 private:
  bool has_exact_rows(const ViewBlock& block) const;
  unsigned scan_block(const Tile& tile, const ViewBlock& block) const;

  const CallContext& context_;
  WorkArray<std::uint8_t> seen_;  // of each tile [block of its view]
};

}  // namespace cqkv
