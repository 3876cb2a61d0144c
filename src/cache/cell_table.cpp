// The loops of cell_table.h.
#include "cache/cell_table.h"

#include <algorithm>

namespace cqkv {

void CellTable::shift(std::size_t first, std::span<const std::int32_t> shifts) {
  for (std::size_t i = 0; i < shifts.size() && first + i < cells_.size(); i++) {
    if (holds_token(first + i)) {
      cells_[first + i] += shifts[i];
    }
  }
}

void CellTable::copy(std::size_t from, std::size_t to, std::size_t n) {
  std::copy_n(cells_.begin() + static_cast<std::ptrdiff_t>(from), n,
              cells_.begin() + static_cast<std::ptrdiff_t>(to));
}

bool CellTable::any_invalid(std::size_t first, std::size_t n) const {
  const auto begin = cells_.begin() + static_cast<std::ptrdiff_t>(first);
  return std::find(begin, begin + static_cast<std::ptrdiff_t>(n), kInvalid) !=
         begin + static_cast<std::ptrdiff_t>(n);
}

}  // namespace cqkv
