// See sequence_views.h.
#include "attention/plan/sequence_views.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <new>
#include <tuple>

#include "codec/code_pieces.h"
#include "core/half.h"

namespace cqkv {
namespace {

// Elements of masks that are kept.
constexpr std::size_t kMaxKeptMask = std::size_t{1} << 20U;

std::int64_t base_of(std::int64_t position) {
  return position & ~std::int64_t{kBlockCells - 1};
}

// A bit for each value that is not -inf.
std::uint64_t seen_of(const std::uint16_t* mask) {
  std::uint64_t seen = 0;
  for (int t = 0; t < kBlockCells; t += 8) {
    std::uint64_t byte = 0;
    for (int i = 0; i < 8; i++) {
      byte |= std::uint64_t{mask[t + i] != kHalfMinusInfinity} << i;
    }
    seen |= byte << t;
  }
  return seen;
}

}  // namespace

bool ViewInputs::same(const AttentionCall& call) const {
  if (!kept_ || n_cells_ != call.n_cells || n_queries_ != call.n_queries ||
      has_mask_ != (call.mask != nullptr) || has_positions_ != (call.positions != nullptr)) {
    return false;
  }
  const std::size_t row_bytes = n_cells_ * sizeof(std::uint16_t);
  for (int i = 0; i < n_queries_ && has_mask_ && n_cells_ > 0; i++) {
    if (std::memcmp(mask_.data() + i * n_cells_, call.mask + i * call.mask_bytes, row_bytes) != 0) {
      return false;
    }
  }
  return !has_positions_ || std::equal(positions_.begin(), positions_.end(), call.positions);
}

void ViewInputs::keep(const AttentionCall& call) {
  kept_ = false;
  n_cells_ = call.n_cells;
  n_queries_ = call.n_queries;
  has_mask_ = call.mask != nullptr;
  has_positions_ = call.positions != nullptr;
  const std::size_t n = has_mask_ ? n_cells_ * static_cast<std::size_t>(n_queries_) : 0;
  if (n > kMaxKeptMask || n_cells_ > kMaxKeptMask) {
    return;
  }
  mask_.resize(n);
  for (int i = 0; i < n_queries_ && n > 0; i++) {
    std::memcpy(mask_.data() + i * n_cells_, call.mask + i * call.mask_bytes,
                n_cells_ * sizeof(std::uint16_t));
  }
  positions_.assign(call.positions, call.positions + (has_positions_ ? n_cells_ : 0));
  kept_ = true;
}

struct SequenceViews::Cells {
  const AttentionCall& call;
  std::int32_t first;  // cell
  std::uint64_t seen;  // a bit a cell

  std::int64_t position(int t) const {
    return call.positions != nullptr ? call.positions[first + t] : first + t;
  }

  // Whether the query sees all 64, at the positions of one block in order.
  bool whole() const {
    if (~seen != 0 || (position(0) & (kBlockCells - 1)) != 0) {
      return false;
    }
    // Without branches, so that it is vectors' work.
    bool all = true;
    for (int t = 1; t < kBlockCells && call.positions != nullptr; t++) {
      all &= (call.positions[first] | t) == call.positions[first + t];
    }
    return all;
  }

  // How many cells from t on are seen at consecutive positions of one block.
  int run_from(int t) const {
    const std::int64_t start = position(t);
    const auto in_block = static_cast<int>(base_of(start) + kBlockCells - start);
    const int longest = std::min(std::countr_one(seen >> t), in_block);
    int run = 1;
    while (run < longest && position(t + run) == start + run) {
      run++;
    }
    return run;
  }
};

SequenceViews::Cells SequenceViews::cells_at(int query, std::size_t block) const {
  const std::size_t first = block * kBlockCells;
  const auto n = static_cast<int>(std::min<std::size_t>(call_->n_cells - first, kBlockCells));
  std::uint64_t seen = n == kBlockCells ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
  if (call_->mask != nullptr) {
    std::uint16_t mask[kBlockCells];
    std::fill_n(mask, kBlockCells, kHalfMinusInfinity);
    std::memcpy(
        mask,
        call_->mask + static_cast<std::size_t>(query) * call_->mask_bytes + first * sizeof(*mask),
        static_cast<std::size_t>(n) * sizeof(*mask));
    seen = seen_of(mask);
  }
  return {*call_, static_cast<std::int32_t>(first), seen};
}

void SequenceViews::build(const AttentionCall& call) {
  if (inputs_.same(call)) {
    return;
  }
  inputs_.forget();
  call_ = &call;
  views_.clear();
  blocks_.clear();
  lanes_.clear();
  pieces_.clear();
  ranges_.clear();
  for (int query = 0; query < call.n_queries; query++) {
    if (query == 0 || !extend(query)) {
      finish();
      start(query);
    }
  }
  finish();
  ranges_.push_back(static_cast<int>(blocks_.size()));
  inputs_.keep(call);
}

// The index of a block of the view under way, or -1; then it belongs at found_.
int SequenceViews::find(std::int64_t base, std::int32_t layer) {
  const auto is_before = [&](const ViewBlock& block) {
    return std::tie(block.base, block.layer) < std::tie(base, layer);
  };
  const auto n_blocks = static_cast<int>(blocks_.size());
  // Mostly it is the last one found or the one behind it.
  if (found_ < n_blocks && blocks_[found_].base == base && blocks_[found_].layer == layer) {
    return found_;
  }
  while (found_ < n_blocks && is_before(blocks_[found_])) {
    found_++;
    if (found_ < n_blocks && is_before(blocks_[found_])) {
      const auto at = std::partition_point(blocks_.begin() + found_, blocks_.end(), is_before);
      found_ = static_cast<int>(at - blocks_.begin());
    }
  }
  const int first_block = views_.back().first_block;
  if (found_ > first_block && !is_before(blocks_[found_ - 1])) {
    const auto at =
        std::partition_point(blocks_.begin() + first_block, blocks_.begin() + found_, is_before);
    found_ = static_cast<int>(at - blocks_.begin());
  }
  const bool found =
      found_ < n_blocks && blocks_[found_].base == base && blocks_[found_].layer == layer;
  return found ? found_ : -1;
}

void SequenceViews::insert(const ViewBlock& block) {
  blocks_.insert(blocks_.begin() + found_, block);
}

// Puts cells from `first` on at places from `lane` on, as far as these are free or have the
// cells already; returns how many.
int SequenceViews::place_run(std::int64_t base, std::int32_t layer, int lane, std::int32_t first,
                             int n) {
  int index = find(base, layer);
  if (index < 0) {
    ViewBlock block;
    block.base = base;
    block.layer = layer;
    if (lanes_.size() > std::numeric_limits<std::int32_t>::max() - std::size_t{kBlockCells}) {
      throw std::bad_alloc();
    }
    block.lanes = static_cast<std::int32_t>(lanes_.size());
    lanes_.resize(lanes_.size() + kBlockCells, -1);
    insert(block);
    index = found_;
  }
  int placed = 0;
  for (; placed < n; placed++) {
    const std::int32_t there = cell(blocks_[index], lane + placed);
    if (there < 0) {
      lanes_[static_cast<std::size_t>(blocks_[index].lanes) + lane + placed] = first + placed;
    } else if (there != first + placed) {
      break;
    }
  }
  return placed;
}

// Puts a query's cells of one block into the view. With `layers`, cells whose places are taken
// get one in the next layer; else the result is false then.
bool SequenceViews::place(const Cells& cells, bool layers) {
  if (cells.whole() && find(cells.position(0), 0) < 0) {
    ViewBlock block;
    block.base = cells.position(0);
    block.block = cells.first / kBlockCells;
    insert(block);
    return true;
  }
  std::uint64_t left = cells.seen;
  std::int32_t layer = 0;
  while (left != 0) {
    const int t = std::countr_zero(left);
    const std::int64_t base = base_of(cells.position(t));
    const auto lane = static_cast<int>(cells.position(t) - base);
    // A cell that finds its place taken moves on alone: the next one has a place of its own.
    const int n = layer == 0 ? cells.run_from(t) : 1;
    const int placed = place_run(base, layer, lane, cells.first + t, n);
    if (placed > 0) {
      left &= ~(~std::uint64_t{0} >> (kBlockCells - placed) << t);
      layer = 0;
    } else if (layers) {
      layer++;
      views_.back().layered = true;
    } else {
      return false;
    }
  }
  return true;
}

void SequenceViews::start(int query) {
  SequenceView view;
  view.first_query = query;
  view.n_queries = 1;
  view.first_block = static_cast<int>(blocks_.size());
  views_.push_back(view);
  found_ = view.first_block;
  const std::size_t n_blocks = (call_->n_cells + kBlockCells - 1) / kBlockCells;
  for (std::size_t b = 0; b < n_blocks; b++) {
    const Cells cells = cells_at(query, b);
    if (cells.seen != 0) {
      place(cells, true);
    }
  }
}

// The blocks of cells that a query sees otherwise than the query before: mostly one or none.
void SequenceViews::find_changes(int query) {
  changed_.clear();
  const std::size_t n_bytes = call_->n_cells * sizeof(std::uint16_t);
  const std::uint8_t* row = call_->mask + static_cast<std::size_t>(query) * call_->mask_bytes;
  const std::uint8_t* before = row - call_->mask_bytes;
  const auto same = [&](std::size_t from, std::size_t n) {
    return std::memcmp(row + from, before + from, std::min(n, n_bytes - from)) == 0;
  };
  constexpr std::size_t kBlockBytes = kBlockCells * sizeof(std::uint16_t);
  constexpr std::size_t kManyBytes = 8 * kBlockBytes;
  for (std::size_t first = 0; first < n_bytes; first += kManyBytes) {
    if (same(first, kManyBytes)) {
      continue;
    }
    const std::size_t end = std::min(first + kManyBytes, n_bytes);
    for (std::size_t block = first; block < end; block += kBlockBytes) {
      if (!same(block, kBlockBytes)) {
        changed_.push_back(block / kBlockBytes);
      }
    }
  }
}

// Tries to add the query to the current view. On failure its cells may remain; earlier queries'
// masks hide them.
bool SequenceViews::extend(int query) {
  SequenceView& view = views_.back();
  if (view.layered) {
    return false;
  }
  if (call_->mask != nullptr) {
    find_changes(query);
    const auto placed = [&](std::size_t b) { return place(cells_at(query, b), false); };
    if (!std::all_of(changed_.begin(), changed_.end(), placed)) {
      return false;
    }
  }
  view.n_queries++;
  return true;
}

// The block of cells that has all cells of a view's block in their places, or -1.
std::int32_t SequenceViews::place_of(const ViewBlock& block) const {
  std::int32_t in_place = -1;
  for (int t = 0; t < kBlockCells; t++) {
    const std::int32_t cell_here = cell(block, t);
    if (cell_here < 0) {
      continue;
    }
    const std::int32_t first = cell_here - t;
    if (first < 0 || first % kBlockCells != 0 || (in_place >= 0 && in_place != first)) {
      return -1;
    }
    in_place = first;
  }
  return in_place / kBlockCells;
}

// Finds the blocks whose cells are in their places, and cuts the view into ranges.
void SequenceViews::finish() {
  if (views_.empty()) {
    return;
  }
  SequenceView& view = views_.back();
  view.n_blocks = static_cast<int>(blocks_.size()) - view.first_block;
  view.first_range = static_cast<int>(ranges_.size());
  std::int64_t range = 0;
  for (int b = view.first_block; b < view.first_block + view.n_blocks; b++) {
    ViewBlock& block = blocks_[static_cast<std::size_t>(b)];
    if (block.lanes >= 0) {
      block.block = place_of(block);
    }
    if (block.block < 0) {
      block.pieces = static_cast<std::int32_t>(pieces_.size());
      add_pieces(lanes(block), &pieces_);
      block.n_pieces = static_cast<std::int32_t>(pieces_.size()) - block.pieces;
    }
    const std::int64_t here = block.base & ~static_cast<std::int64_t>(kRangePositions - 1);
    if (b == view.first_block || here != range) {
      ranges_.push_back(b);
      range = here;
    }
  }
  view.n_ranges = static_cast<int>(ranges_.size()) - view.first_range;
}

}  // namespace cqkv
