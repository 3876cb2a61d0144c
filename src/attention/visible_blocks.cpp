// What the queries of a tile see of the blocks of a call: masks, exact rows, and whether the
// positions of cells run on, which decides how their keys are rotated. Part of
// AttentionOperator. A query's answers depend on the cells that it sees and on nothing else.
#include <algorithm>
#include <cstring>
#include <limits>

#include "attention/attention_operator.h"
#include "cache/exact_window.h"

namespace cqkv {
namespace {

constexpr std::uint16_t kHalfMinusInfinity = 0xFC00;

}  // namespace

bool AttentionOperator::sees_range(int tile, int range) const {
  const int first = range * kBlocksPerRange;
  const int last = std::min(first + kBlocksPerRange, plan_.n_blocks);
  for (int block = first; block < last; block++) {
    if (sees(tile, block)) {
      return true;
    }
  }
  return false;
}

void AttentionOperator::scan_mask(int tile) {
  std::uint16_t hidden[kBlockCells];
  std::fill_n(hidden, kBlockCells, kHalfMinusInfinity);
  const Part part = part_of(tile, 0, 1);
  for (int block = 0; block < plan_.n_blocks; block++) {
    const std::size_t bytes = static_cast<std::size_t>(cells_of(block)) * sizeof(std::uint16_t);
    bool seen = call_.mask == nullptr;
    for (int i = 0; i < part.n_queries && !seen; i++) {
      const std::uint8_t* row = call_.mask + (part.first_query + i) * call_.mask_bytes;
      const std::size_t offset = static_cast<std::size_t>(block) * sizeof(hidden);
      seen = std::memcmp(row + offset, hidden, bytes) != 0;
    }
    visible_[static_cast<std::size_t>(tile) * plan_.n_blocks + block] =
        static_cast<std::uint8_t>(seen ? scan_block(part, block) : 0);
  }
}

bool AttentionOperator::has_exact_rows(int block) const {
  if (call_.exact == nullptr) {
    return false;
  }
  const std::int32_t* rows = call_.exact->rows + static_cast<std::size_t>(block) * kBlockCells;
  return std::any_of(rows, rows + cells_of(block), [](std::int32_t row) { return row >= 0; });
}

// Only where has_exact_rows.
bool AttentionOperator::is_exact(int query, std::size_t cell) const {
  const ExactRows& exact = *call_.exact;
  const std::int32_t row = exact.rows[cell];
  const std::int64_t ahead =
      static_cast<std::int64_t>(exact.query_positions[query]) - call_.positions[cell];
  return row >= 0 && (ahead < exact.window || exact.sinks[row] != 0);
}

// Whether the cells of a block have consecutive positions, or nobody asks.
bool AttentionOperator::positions_run_on(int block) const {
  if (!plan_.byte_keys || call_.rope == nullptr) {
    return true;
  }
  const std::int32_t* positions = call_.positions + static_cast<std::size_t>(block) * kBlockCells;
  // Without a branch, so that it is vectors' work; wrapping is as good as differing.
  std::uint32_t different = 0;
  for (int t = 1; t < cells_of(block); t++) {
    different |=
        (static_cast<std::uint32_t>(positions[t]) - static_cast<std::uint32_t>(positions[0])) ^
        static_cast<std::uint32_t>(t);
  }
  return different == 0;
}

// What the queries of a tile see of a block of which they see something.
unsigned AttentionOperator::scan_block(const Part& part, int block) const {
  const bool exact = has_exact_rows(block);
  const bool runs_on = positions_run_on(block);
  if (!exact && runs_on) {
    return kSeesCoded;
  }
  const unsigned all = kSeesCoded | kSeesScattered | (exact ? kSeesExact : 0);
  unsigned seen = 0;
  for (int i = part.first_query; i < part.first_query + part.n_queries && seen != all; i++) {
    seen |= scan_query(i, block, exact, runs_on);
  }
  return seen;
}

// The same of one query; `exact`: some cells have exact rows, `runs_on`: all positions run on.
unsigned AttentionOperator::scan_query(int query, int block, bool exact, bool runs_on) const {
  const MaskView mask{call_.mask, call_.mask_bytes};
  const std::size_t first = static_cast<std::size_t>(block) * kBlockCells;
  std::int64_t base = kNoBase;
  unsigned seen = 0;
  bool scattered = false;
  for (int t = 0; t < cells_of(block); t++) {
    if (!mask.sees(static_cast<std::size_t>(query), first + t)) {
      continue;
    }
    if (exact && is_exact(query, first + t)) {
      seen |= kSeesExact;
      continue;
    }
    seen |= kSeesCoded;
    const std::int64_t base_here = runs_on ? 0 : std::int64_t{call_.positions[first + t]} - t;
    scattered = scattered || (base != kNoBase && base != base_here);
    base = base_here;
  }
  return scattered ? (seen & ~kSeesCoded) | kSeesScattered : seen;
}

void AttentionOperator::load_mask(const Part& part, std::size_t cell, int n_cells,
                                  float* mask) const {
  for (int i = 0; i < part.n_queries; i++) {
    float* row = mask + static_cast<std::size_t>(i) * kBlockCells;
    if (call_.mask == nullptr) {
      std::fill_n(row, n_cells, 0.0F);
    } else {
      const std::uint8_t* from = call_.mask + (part.first_query + i) * call_.mask_bytes;
      kernel_.half_to_float_n(
          reinterpret_cast<const std::uint16_t*>(from + cell * sizeof(std::uint16_t)),
          static_cast<std::size_t>(n_cells), row);
    }
    std::fill(row + n_cells, row + kBlockCells, kMinusInfinity);
  }
}

// Cells that no query sees may hold any position. They get the one that they would have
// in a block of consecutive ones, which RopeTable does fastest.
void AttentionOperator::load_angles(const Part& part, std::size_t cell, int n_cells,
                                    const Scratch& scratch) const {
  float highest[kBlockCells];
  std::copy_n(scratch.mask, kBlockCells, highest);
  for (int i = 1; i < part.n_queries; i++) {
    const float* row = scratch.mask + static_cast<std::size_t>(i) * kBlockCells;
    for (int t = 0; t < kBlockCells; t++) {
      highest[t] = std::max(highest[t], row[t]);
    }
  }
  int first_seen = 0;
  while (first_seen < kBlockCells - 1 && !(highest[first_seen] > kMinusInfinity)) {
    first_seen++;
  }
  const std::int32_t known = call_.positions[cell + std::min(first_seen, n_cells - 1)];
  for (int t = 0; t < kBlockCells; t++) {
    const bool seen = highest[t] > kMinusInfinity;
    scratch.positions[t] = seen ? call_.positions[cell + t] : (known & ~(kBlockCells - 1)) + t;
  }
  call_.rope->block(scratch.positions, scratch.cosines, scratch.sines);
}

// Leaves in the mask what is seen coded, in the exact mask what is seen exactly.
void AttentionOperator::split_exact(const Part& part, int block, const Scratch& scratch) const {
  const std::size_t first = static_cast<std::size_t>(block) * kBlockCells;
  const int n_cells = cells_of(block);
  for (int i = 0; i < part.n_queries; i++) {
    float* coded = scratch.mask + static_cast<std::size_t>(i) * kBlockCells;
    float* exact = scratch.exact_mask + static_cast<std::size_t>(i) * kBlockCells;
    std::fill_n(exact, kBlockCells, kMinusInfinity);
    for (int t = 0; t < n_cells; t++) {
      if (is_exact(part.first_query + i, first + t)) {
        std::swap(coded[t], exact[t]);
      }
    }
  }
}

// For every query the position that cell 0 would have, if those of the cells that it sees coded
// run on; the cells of the other queries move to the scattered mask. Their positions are
// 64 h + l, and a turn is what has the same h.
void AttentionOperator::split_scattered(const Part& part, int block, float* mask,
                                        std::int64_t* bases, const Scratch& scratch) const {
  const std::int32_t* positions = call_.positions + static_cast<std::size_t>(block) * kBlockCells;
  const int n_cells = cells_of(block);
  for (int i = 0; i < part.n_queries; i++) {
    float* coded = mask + static_cast<std::size_t>(i) * kBlockCells;
    float* scattered = scratch.scattered_mask + static_cast<std::size_t>(i) * kBlockCells;
    std::fill_n(scattered, kBlockCells, kMinusInfinity);
    std::int64_t base = kNoBase;
    bool runs_on = true;
    for (int t = 0; t < n_cells; t++) {
      if (coded[t] > kMinusInfinity) {
        const std::int64_t here = std::int64_t{positions[t]} - t;
        runs_on = runs_on && (base == kNoBase || base == here);
        base = here;
      }
    }
    bases[i] = runs_on && base != kNoBase ? base : 0;
    if (!runs_on) {
      std::swap_ranges(coded, coded + kBlockCells, scattered);
      find_turns(i, positions, n_cells, scratch);
    }
  }
}

// The turns of a query that sees cells of a block scattered, in the order of cells. Its bases
// are kNoBase before.
void AttentionOperator::find_turns(int query, const std::int32_t* positions, int n_cells,
                                   const Scratch& scratch) const {
  const std::size_t first = static_cast<std::size_t>(query) * kBlockCells;
  std::int64_t* bases = scratch.turn_bases + first;
  int n_turns = 0;
  for (int t = 0; t < n_cells; t++) {
    if (scratch.scattered_mask[first + t] > kMinusInfinity) {
      const std::int64_t base = positions[t] & ~std::int32_t{kBlockCells - 1};
      const std::int64_t* found = std::find(bases, bases + n_turns, base);
      scratch.turns[first + t] = static_cast<std::uint8_t>(found - bases);
      if (found == bases + n_turns) {
        bases[n_turns++] = base;
      }
    }
  }
}

// What the KV heads of a task share of block number `index` of a chunk: masks and angles.
void AttentionOperator::prepare_block(const Part& part, const Chunk& chunk, int index,
                                      const Scratch& scratch) const {
  const int block = chunk.blocks[index];
  const std::size_t cell = static_cast<std::size_t>(block) * kBlockCells;
  float* mask = scratch.mask + static_cast<std::size_t>(index) * plan_.tile_queries * kBlockCells;
  std::int64_t* bases = scratch.bases + static_cast<std::size_t>(index) * plan_.tile_queries;
  load_mask(part, cell, cells_of(block), mask);
  const bool rotated = call_.rope != nullptr && call_.k.codebook != nullptr;
  if (rotated && (!plan_.byte_keys || (chunk.seen & kSeesExact) != 0)) {
    load_angles(part, cell, cells_of(block), scratch);
  }
  if ((chunk.seen & kSeesExact) != 0) {
    split_exact(part, block, scratch);
  }
  if (!plan_.byte_keys) {
    return;
  }
  if (positions_run_on(block)) {
    std::fill_n(bases, part.n_queries, rotated ? call_.positions[cell] : 0);
  } else {
    std::fill_n(scratch.turn_bases, static_cast<std::size_t>(part.n_queries) * kBlockCells,
                kNoBase);
    split_scattered(part, block, mask, bases, scratch);
  }
  load_row_angles(bases[0], row_angles_of(scratch, index));
  if ((chunk.seen & kSeesScattered) != 0) {
    pick_block_angles(block, scratch);
  }
}

}  // namespace cqkv
