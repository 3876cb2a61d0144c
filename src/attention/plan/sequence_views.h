// Which cells queries see, in the order of their positions. A cache may hold a sequence in any
// cells: one after the other, taking turns with other sequences, with gaps, moved. Attention
// works on blocks of 64 positions from a multiple of 64 on, wherever their cells are. What it
// computes with them is not here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention/attention.h"
#include "kernels/coded_blocks.h"

namespace cqkv {

/// The cells at 64 consecutive positions of a view.
struct ViewBlock {
  std::int64_t base = 0;    ///< The first position, a multiple of 64.
  std::int32_t layer = 0;   ///< Which of the cells at a position: 0 where they differ.
  std::int32_t block = -1;  ///< The block of cells that has them all in their places, or -1.
  std::int32_t lanes = -1;  ///< Where the list of cells begins, or -1: all of `block`.
  std::int32_t pieces = 0;  ///< Where the list of pieces begins, of a block that is not in place.
  std::int32_t n_pieces = 0;
};

/// A copy of what the views of a call depend on, to know them again: all layers of a model are
/// called with the same. Of calls with large masks none is kept: building is little there.
class ViewInputs {
 public:
  /// Whether those of `call` are kept.
  bool same(const AttentionCall& call) const;

  /// May throw std::bad_alloc; then none are kept.
  void keep(const AttentionCall& call);

  void forget() { kept_ = false; }

 private:
  bool kept_ = false;
  std::size_t n_cells_ = 0;
  int n_queries_ = 0;
  bool has_mask_ = false;
  bool has_positions_ = false;
  std::vector<std::uint16_t> mask_;  // [n_queries, n_cells]
  std::vector<std::int32_t> positions_;
};

/// Consecutive queries of a call that may share blocks.
struct SequenceView {
  int first_query = 0;
  int n_queries = 0;
  int first_block = 0;
  int n_blocks = 0;
  int first_range = 0;
  int n_ranges = 0;
  bool layered = false;  ///< Some cells have the same position.
};

/// The views of a call. A view groups consecutive queries that place every shared position in the
/// same cell; the mask hides the rest. So what a query gets depends on the cells that it sees, and
/// on nothing else.
///
/// Several cells at one position stand in layers, in the order of cells, each with blocks of its
/// own. Cells without positions count by their own numbers.
///
/// Blocks stand in ascending order of (base, layer), cut into ranges of kRangePositions positions.
class SequenceViews {
 public:
  /// Of a legal call, whose masks and positions are read now; if they are those of the call
  /// before, nothing is built anew. May throw std::bad_alloc.
  void build(const AttentionCall& call);

  const std::vector<SequenceView>& views() const { return views_; }

  const ViewBlock& block(int index) const { return blocks_[static_cast<std::size_t>(index)]; }

  int range_begin(int range) const { return ranges_[static_cast<std::size_t>(range)]; }

  int range_end(int range) const { return ranges_[static_cast<std::size_t>(range) + 1]; }

  /// The cell at a place of a block, or -1.
  std::int32_t cell(const ViewBlock& block, int lane) const {
    return block.lanes < 0 ? block.block * kBlockCells + lane
                           : lanes_[static_cast<std::size_t>(block.lanes) + lane];
  }

  /// How to gather the codes of a block that is not in place, n_pieces of them. (Only codes of 8
  /// bits are gathered so; for whom, views do not know.)
  const kernels::CodePieces* pieces(const ViewBlock& block) const {
    return pieces_.data() + block.pieces;
  }

  /// The cells [64] of a block that is not in place, -1 where there is none.
  const std::int32_t* lanes(const ViewBlock& block) const { return lanes_.data() + block.lanes; }

 private:
  // One block of cells, and which of them a query sees.
  struct Cells;

  Cells cells_at(int query, std::size_t block) const;
  void find_changes(int query);
  bool extend(int query);
  void start(int query);
  bool place(const Cells& cells, bool layers);
  int place_run(std::int64_t base, std::int32_t layer, int lane, std::int32_t first, int n);
  void finish();
  std::int32_t place_of(const ViewBlock& block) const;
  int find(std::int64_t base, std::int32_t layer);
  void insert(const ViewBlock& block);

  ViewInputs inputs_;
  const AttentionCall* call_ = nullptr;
  std::vector<SequenceView> views_;
  std::vector<ViewBlock> blocks_;
  std::vector<std::int32_t> lanes_;
  std::vector<kernels::CodePieces> pieces_;
  std::vector<int> ranges_;           // where each begins, and the end of the last
  std::vector<std::size_t> changed_;  // blocks of cells, by find_changes
  int found_ = 0;                     // the block of the last look-up, or where it would stand
};

}  // namespace cqkv
