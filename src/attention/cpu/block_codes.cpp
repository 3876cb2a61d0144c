// See block_codes.h.
#include "attention/cpu/block_codes.h"

#include <algorithm>
#include <cstring>

namespace cqkv {
namespace {

// Groups of more channels than a table's entry have the codes of each part one after the other,
// [n_groups * n_parts, bytes]. `codes` may be `to`.
const std::uint8_t* repeat_codes(const std::uint8_t* codes, int n_groups, int n_parts,
                                 std::size_t bytes, std::uint8_t* to) {
  for (int i = n_groups * n_parts; i-- > 0;) {
    std::memmove(to + i * bytes, codes + i / n_parts * bytes, bytes);
  }
  return to;
}

// Codes of 8 bits of a block that is not in place.
void gather_bytes(const CallContext& context, const CacheSide& side, int kv_head,
                  const ViewBlock& block, std::uint8_t* out) {
  const CodeLayout& layout = side.codec->layout();
  kernels::GatherCodes gather;
  gather.codes = side.data + layout.group_offset(0, kv_head, 0);
  gather.block_bytes = layout.block_bytes();
  gather.group_bytes = layout.group_bytes();
  gather.n_groups = layout.n_groups(kv_head);
  gather.pieces = context.views.pieces(block);
  gather.n_pieces = block.n_pieces;
  gather.out = out;
  context.kernel.gather_codes(gather);
}

}  // namespace

void load_codes(const CallContext& context, const CacheSide& side, int kv_head, int group,
                const ViewBlock& block, std::uint16_t* codes) {
  const CodeLayout& layout = side.codec->layout();
  if (!layout.spec.coded(kv_head)) {
    std::fill_n(codes, kBlockCells, std::uint16_t{0});
  } else if (block.block >= 0) {
    unpack_group(layout.code_bits(), side.data + layout.group_offset(block.block, kv_head, group),
                 codes);
  } else {
    gather_group(layout, side.data, kv_head, group, context.views.lanes(block), codes);
  }
}

const std::uint8_t* block_codes(const CallContext& context, const CacheSide& side, int kv_head,
                                const ViewBlock& block, std::uint8_t* unpacked) {
  const CodeLayout& layout = side.codec->layout();
  const int code_bits = layout.code_bits();
  const int n_groups = layout.n_groups(kv_head);
  if (!layout.spec.coded(kv_head)) {
    std::memset(unpacked, 0, static_cast<std::size_t>(n_groups) * unpacked_group_bytes(code_bits));
    return unpacked;
  }
  if (code_bits == 8 && block.block >= 0) {
    return side.data + layout.group_offset(block.block, kv_head, 0);
  }
  if (code_bits == 8) {
    gather_bytes(context, side, kv_head, block, unpacked);
    return unpacked;
  }
  for (int g = 0; g < n_groups; g++) {
    std::uint16_t codes[kBlockCells];
    load_codes(context, side, kv_head, g, block, codes);
    if (code_bits > 8) {
      std::memcpy(unpacked + g * sizeof(codes), codes, sizeof(codes));
    } else {
      std::copy_n(codes, kBlockCells, unpacked + g * kBlockCells);
    }
  }
  return unpacked;
}

kernels::CodedBlocks coded_blocks(const CallContext& context, const CacheSide& side, int kv_head,
                                  const BlockChunk& chunk, std::uint8_t* unpacked) {
  const CodeLayout& layout = side.codec->layout();
  const int group_dim = layout.spec.group_dim(kv_head);
  const int entry_dim = side.codec->tables()->entry_dim(group_dim);
  const int n_parts = group_dim / entry_dim;
  const int n_groups = layout.n_groups(kv_head);
  const std::size_t group_bytes = unpacked_group_bytes(layout.code_bits());
  kernels::CodedBlocks blocks;
  blocks.table = side.codec->tables()->table(kv_head);
  blocks.group_dim = entry_dim;
  blocks.code_bits = layout.code_bits();
  blocks.n_channels = layout.spec.head_dim();
  blocks.n_blocks = layout.spec.coded(kv_head) ? chunk.n : 1;  // without codes all are alike
  for (int i = 0; i < blocks.n_blocks; i++) {
    std::uint8_t* to = unpacked + static_cast<std::size_t>(i) * n_groups * n_parts * group_bytes;
    blocks.codes[i] = block_codes(context, side, kv_head, context.views.block(chunk.blocks[i]), to);
    if (n_parts > 1) {
      blocks.codes[i] = repeat_codes(blocks.codes[i], n_groups, n_parts, group_bytes, to);
    }
  }
  return blocks;
}

std::size_t coded_bytes(const CacheSide& side) {
  const TensorSpec& spec = side.codec->spec();
  int n_groups = 0;
  for (int kv_head = 0; kv_head < spec.n_kv_heads(); kv_head++) {
    n_groups = std::max(n_groups,
                        spec.head_dim() / side.codec->tables()->entry_dim(spec.group_dim(kv_head)));
  }
  return static_cast<std::size_t>(n_groups) * unpacked_group_bytes(spec.code_bits());
}

}  // namespace cqkv
