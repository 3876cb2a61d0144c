// The codes of a block as steps read them, wherever its cells are: as numbers for steps in floats,
// as bytes for the integer kernels. What they mean is not here; nothing is kept.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/cpu/task.h"
#include "kernels/coded_blocks.h"

namespace cqkv {

// The codes of one group of a block as the integer kernels read them.
inline std::size_t unpacked_group_bytes(int code_bits) {
  return kBlockCells * (code_bits > 8 ? sizeof(std::uint16_t) : 1);
}

// The codes [64] of one group of a block.
void load_codes(const CallContext& context, const CacheSide& side, int kv_head, int group,
                const ViewBlock& block, std::uint16_t* codes);

// The codes [group, 64] of one KV head of a block as the integer kernels read them: where they lie,
// or in `unpacked`, unpacked_group_bytes for each group.
const std::uint8_t* block_codes(const CallContext& context, const CacheSide& side, int kv_head,
                                const ViewBlock& block, std::uint8_t* unpacked);

// The codes of one KV head of all blocks of a chunk, with the head's byte tables: one block if the
// head has no codes. `unpacked` has coded_bytes for each block.
kernels::CodedBlocks coded_blocks(const CallContext& context, const CacheSide& side, int kv_head,
                                  const BlockChunk& chunk, std::uint8_t* unpacked);

// The most that coded_blocks may unpack of one block and KV head. Of a side with byte tables.
std::size_t coded_bytes(const CacheSide& side);

}  // namespace cqkv
