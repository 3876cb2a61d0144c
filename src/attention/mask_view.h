// What queries see: the mask of an attention call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/half.h"

namespace cqkv {

/// Visibility as attention gets it: f16 at data + query * row_bytes + 2 * cell, -inf where
/// the query does not see the cell. Null: all is visible.
struct MaskView {
  const std::uint8_t* data = nullptr;
  std::size_t row_bytes = 0;

  bool sees(std::size_t query, std::size_t cell) const {
    if (data == nullptr) {
      return true;
    }
    std::uint16_t value = 0;
    std::memcpy(&value, data + query * row_bytes + cell * sizeof(value), sizeof(value));
    return value != kHalfMinusInfinity;
  }
};

}  // namespace cqkv
