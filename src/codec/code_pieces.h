// Blocks of any cells as pieces of the cache, from which kernels gather their codes.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/coded_blocks.h"

namespace cqkv {

/// Appends gather instructions for 64 cells (negative: empty), two source pieces per instruction.
/// Sixteen neighbouring cells lie in one or two pieces, whatever the place of the block. May throw
/// std::bad_alloc.
void add_pieces(const std::int32_t* cells, std::vector<kernels::CodePieces>* pieces);

}  // namespace cqkv
