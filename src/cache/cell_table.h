// What is known of each cell of one cache buffer, shared by all its layers: the
// position of the token in it, or that it is empty, or that it must not be read.
// Four bytes a cell. The codes themselves are in code_blocks.h.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace cqkv {

class CellTable {
 public:
  /// A cell that holds no token.
  static constexpr std::int32_t kEmpty = INT32_MIN;
  /// A cell whose record could not be restored; attention to it must fail.
  static constexpr std::int32_t kInvalid = INT32_MIN + 1;

  std::size_t size() const { return cells_.size(); }

  std::size_t bytes() const { return cells_.size() * sizeof(std::int32_t); }

  /// Makes room for n_cells; new cells are empty.
  void grow(std::size_t n_cells) {
    if (n_cells > cells_.size()) {
      cells_.resize(n_cells, kEmpty);
    }
  }

  void clear() { std::fill(cells_.begin(), cells_.end(), kEmpty); }

  /// The positions from `first` on, for attention; values of cells without a token
  /// are negative and must be masked by the caller.
  const std::int32_t* positions(std::size_t first) const { return cells_.data() + first; }

  std::int32_t at(std::size_t cell) const { return cells_[cell]; }

  bool holds_token(std::size_t cell) const {
    return cells_[cell] != kEmpty && cells_[cell] != kInvalid;
  }

  /// A token at `position` was stored (or restored) in `cell`.
  void set(std::size_t cell, std::int32_t position) { cells_[cell] = position; }

  /// A token whose position does not matter was stored: keeps a known position.
  void occupy(std::size_t cell) {
    if (!holds_token(cell)) {
      cells_[cell] = 0;
    }
  }

  /// Adds shifts[i] to the position of cell first + i, where there is a token: the whole
  /// of a context shift, since keys are coded before their rotation.
  void shift(std::size_t first, std::span<const std::int32_t> shifts);

  /// The copy of one stream's cells to another's.
  void copy(std::size_t from, std::size_t to, std::size_t n);

  /// Invalid cells in [first, first + n).
  bool any_invalid(std::size_t first, std::size_t n) const;

 private:
  std::vector<std::int32_t> cells_;
};

}  // namespace cqkv
