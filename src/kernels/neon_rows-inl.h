// NEON: where the channels of tokens come from. The centroids of a group stand in memory as they
// are, so one load gives eight channels of a token. What is multiplied with them is not here. Part
// of integer_neon-inl.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <arm_neon.h>

#include "kernels/coded_blocks.h"

namespace cqkv::kernels {
namespace {

// Channels that are decoded together.
constexpr int kSlice = 8;

// Where channels [channel, channel + 8) of a head come from in one block: tables and codes of
// their groups. Beyond the head's last channel the last group is repeated.
template <int kDim, typename Code>
struct SliceSource {
  static constexpr int kGroups = kDim >= kSlice ? 1 : kSlice / kDim;
  const std::int8_t* tables[kGroups];
  const Code* codes[kGroups];

  SliceSource(const CodedBlocks& blocks, int block, int channel) {
    const int last = blocks.n_channels / kDim - 1;
    for (int i = 0; i < kGroups; i++) {
      const int wanted = channel / kDim + i;
      const int group = wanted < last ? wanted : last;
      tables[i] = blocks.table + group * table_entries(blocks.code_bits) * kDim +
                  (kDim > kSlice ? channel % kDim : 0);
      codes[i] = reinterpret_cast<const Code*>(blocks.codes[block]) +
                 static_cast<std::size_t>(group) * kBlockCells;
      // Hides that tables and codes of two slices are each one array: gcc 12 goes through both
      // from one pointer, at the price of an addition a token.
      asm("" : "+r"(tables[i]), "+r"(codes[i]));
    }
  }

  // Eight channels of token t in the lower half.
  [[gnu::always_inline]] int8x16_t row(int t) const {
    const int8x8_t nothing = vdup_n_s8(0);
    if constexpr (kDim >= kSlice) {
      return vcombine_s8(vld1_s8(tables[0] + static_cast<std::size_t>(codes[0][t]) * kDim),
                         nothing);
    } else {
      std::uint64_t word = 0;
      for (int i = 0; i < kGroups; i++) {
        std::uint64_t part = 0;
        std::memcpy(&part, tables[i] + static_cast<std::size_t>(codes[i][t]) * kDim, kDim);
        word |= part << (8 * kDim * i);
      }
      return vcombine_s8(vcreate_s8(word), nothing);
    }
  }
};

}  // namespace
}  // namespace cqkv::kernels
