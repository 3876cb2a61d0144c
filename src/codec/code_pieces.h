// Blocks of any cells as pieces of the cache, from which kernels gather their codes.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/coded_blocks.h"

namespace cqkv {

/// Appends what GatherCodes wants for a block of the given cells [64], of which the negative ones
/// are none: two of the pieces that every sixteen cells are in at a time. Most are in one or two,
/// whatever the place of the block. May throw std::bad_alloc.
void add_pieces(const std::int32_t* cells, std::vector<kernels::CodePieces>* pieces);

}  // namespace cqkv
