// Packing of codes into planes and back; see code_blocks.h for the layout.
#include "codec/code_blocks.h"

#include <cstring>

namespace cqkv {
namespace {

// The planes of one group: which low bits the byte or nibble plane holds, and where
// the mask words begin.
struct Planes {
  int low_bits = 0;
  std::size_t mask_offset = 0;
};

Planes planes_of(int code_bits) {
  if (code_bits >= 8) {
    return {8, kBlockCells};
  }
  if (code_bits >= 4) {
    return {4, kBlockCells / 2};
  }
  return {0, 0};
}

void put_code(int code_bits, std::uint8_t* group, int cell, unsigned code) {
  const Planes planes = planes_of(code_bits);
  if (planes.low_bits == 8) {
    group[cell] = static_cast<std::uint8_t>(code & 0xFFU);
  } else if (planes.low_bits == 4) {
    const int shift = cell % 2 * 4;
    const unsigned kept = group[cell / 2] & ~(0xFU << shift);
    group[cell / 2] = static_cast<std::uint8_t>(kept | ((code & 0xFU) << shift));
  }
  // A little-endian word has the bit of cell t in byte t / 8 on every machine.
  for (int bit = planes.low_bits; bit < code_bits; bit++) {
    std::uint8_t* word = group + planes.mask_offset + (bit - planes.low_bits) * 8;
    const unsigned kept = word[cell / 8] & ~(1U << (cell % 8));
    word[cell / 8] = static_cast<std::uint8_t>(kept | (((code >> bit) & 1U) << (cell % 8)));
  }
}

unsigned get_code(int code_bits, const std::uint8_t* group, int cell) {
  const Planes planes = planes_of(code_bits);
  unsigned code = 0;
  if (planes.low_bits == 8) {
    code = group[cell];
  } else if (planes.low_bits == 4) {
    code = (group[cell / 2] >> (cell % 2 * 4)) & 0xFU;
  }
  for (int bit = planes.low_bits; bit < code_bits; bit++) {
    const std::uint8_t* word = group + planes.mask_offset + (bit - planes.low_bits) * 8;
    code |= ((word[cell / 8] >> (cell % 8)) & 1U) << bit;
  }
  return code;
}

using Codes8 = std::uint16_t __attribute__((vector_size(16)));

Codes8 splat(unsigned value) {
  const auto narrow = static_cast<std::uint16_t>(value);
  return Codes8{narrow, narrow, narrow, narrow, narrow, narrow, narrow, narrow};
}

// Adds bit `bit` of the eight cells whose flags are the bits of `flags`.
void add_bit(unsigned flags, int bit, std::uint16_t* codes) {
  constexpr Codes8 kCellBit = {1, 2, 4, 8, 16, 32, 64, 128};
  Codes8 values;
  std::memcpy(&values, codes, sizeof(values));
  const auto set = __builtin_bit_cast(Codes8, (splat(flags) & kCellBit) != 0);
  values |= set & splat(1U << bit);
  std::memcpy(codes, &values, sizeof(values));
}

}  // namespace

void put_codes(const CodeLayout& layout, std::uint8_t* tensor, std::size_t cell,
               const std::uint16_t* codes) {
  std::uint8_t* group = tensor + layout.group_offset(cell / kBlockCells, 0, 0);
  const int in_block = static_cast<int>(cell % kBlockCells);
  for (int i = 0; i < layout.n_codes(); i++) {
    put_code(layout.code_bits(), group, in_block, codes[i]);
    group += layout.group_bytes();
  }
}

void get_codes(const CodeLayout& layout, const std::uint8_t* tensor, std::size_t cell,
               std::uint16_t* codes) {
  const std::uint8_t* group = tensor + layout.group_offset(cell / kBlockCells, 0, 0);
  const int in_block = static_cast<int>(cell % kBlockCells);
  for (int i = 0; i < layout.n_codes(); i++) {
    codes[i] = static_cast<std::uint16_t>(get_code(layout.code_bits(), group, in_block));
    group += layout.group_bytes();
  }
}

void gather_group(const CodeLayout& layout, const std::uint8_t* tensor, int kv_head, int group,
                  const std::int32_t* cells, std::uint16_t* codes) {
  for (int t = 0; t < kBlockCells; t++) {
    codes[t] = 0;
    if (cells[t] >= 0) {
      const auto cell = static_cast<std::size_t>(cells[t]);
      const std::uint8_t* planes = tensor + layout.group_offset(cell / kBlockCells, kv_head, group);
      codes[t] = static_cast<std::uint16_t>(
          get_code(layout.code_bits(), planes, static_cast<int>(cell % kBlockCells)));
    }
  }
}

void unpack_group(int code_bits, const std::uint8_t* group, std::uint16_t* codes) {
  const Planes planes = planes_of(code_bits);
  if (planes.low_bits == 8) {
    for (int t = 0; t < kBlockCells; t++) {
      codes[t] = group[t];
    }
  } else if (planes.low_bits == 4) {
    for (int t = 0; t < kBlockCells / 2; t++) {
      codes[2 * t] = group[t] & 0xFU;
      codes[2 * t + 1] = group[t] >> 4U;
    }
  } else {
    std::memset(codes, 0, kBlockCells * sizeof(*codes));
  }
  for (int bit = planes.low_bits; bit < code_bits; bit++) {
    const std::uint8_t* word = group + planes.mask_offset + (bit - planes.low_bits) * 8;
    for (int t = 0; t < kBlockCells; t += 8) {
      add_bit(word[t / 8], bit, codes + t);
    }
  }
}

}  // namespace cqkv
