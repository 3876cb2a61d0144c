// Where the codes of one cache tensor lie in memory: blocks of 64 cells, group-
// major inside, b bits a code for every b (kernels.md, section 0, point 8).
//
//   [block][kv_head][group][plane]
//
// The 64 codes of a group take 8 b bytes: for b >= 8 a plane of 64 low bytes, for
// 4 <= b < 8 one of 32 bytes with the low four bits (cell t in byte t / 2, even
// cells in the low half), then for each remaining bit, ascending, a 64-bit
// little-endian mask word whose bit t belongs to cell t.
//
// Nothing is owned here: memory is the caller's (in the device, ggml's buffer).
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "cqkv/types.h"

namespace cqkv {

inline constexpr int kBlockCells = 64;

struct CodeLayout {
  CodeLayout() = default;

  explicit CodeLayout(TensorSpec tensor) : spec(std::move(tensor)) {}

  TensorSpec spec;

  int code_bits() const { return spec.code_bits(); }

  /// Channels of one row.
  int n_channels() const { return spec.n_channels(); }

  int n_groups(int kv_head) const { return spec.n_groups(kv_head); }

  int n_codes() const { return spec.n_codes(); }

  std::size_t group_bytes() const { return static_cast<std::size_t>(8) * spec.code_bits(); }

  std::size_t block_bytes() const { return group_bytes() * n_codes(); }

  /// Bytes for n_cells cells, rounded up to whole blocks.
  std::size_t tensor_bytes(std::size_t n_cells) const {
    return (n_cells + kBlockCells - 1) / kBlockCells * block_bytes();
  }

  /// The codes of one group of one block; of a head that has codes.
  std::size_t group_offset(std::size_t block, int kv_head, int group) const {
    return block * block_bytes() +
           static_cast<std::size_t>(spec.first_code(kv_head) + group) * group_bytes();
  }
};

/// Stores the codes [n_codes()] of one cell; other cells are untouched. Two threads
/// may store different cells only if they lie in different blocks.
void put_codes(const CodeLayout& layout, std::uint8_t* tensor, std::size_t cell,
               const std::uint16_t* codes);

/// The codes [n_codes()] of one cell.
void get_codes(const CodeLayout& layout, const std::uint8_t* tensor, std::size_t cell,
               std::uint16_t* codes);

/// The codes [64] of one group of any 64 cells, 0 where a cell is negative.
void gather_group(const CodeLayout& layout, const std::uint8_t* tensor, int kv_head, int group,
                  const std::int32_t* cells, std::uint16_t* codes);

/// Unpacks one group of one block: codes [64]. `group` points at its planes.
void unpack_group(int code_bits, const std::uint8_t* group, std::uint16_t* codes);

}  // namespace cqkv
