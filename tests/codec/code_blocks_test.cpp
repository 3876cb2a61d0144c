// Packed codes for every legal (group_dim, code_bits): what is put is got, nothing else
// moves, and the bytes are those of the layout in the header.
#include "codec/code_blocks.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include <gtest/gtest.h>

#include "core/rng.h"
#include "support/exact_buffer.h"

namespace cqkv {
namespace {

class CodeBlocksTest : public testing::TestWithParam<int> {
 protected:
  int bits() const { return GetParam(); }

  CodeLayout layout(int group_dim) const {
    return CodeLayout(TensorSpec({group_dim, bits()}, 3, 48));
  }

  std::vector<std::uint16_t> random_codes(std::size_t n) {
    std::vector<std::uint16_t> codes(n);
    for (std::uint16_t& code : codes) {
      code = static_cast<std::uint16_t>(rng.below(std::uint64_t{1} << bits()));
    }
    return codes;
  }

  ExactBuffer<std::uint8_t> random_bytes(std::size_t n) {
    ExactBuffer<std::uint8_t> bytes(n);
    for (std::uint8_t& byte : bytes) {
      byte = static_cast<std::uint8_t>(rng.below(256));
    }
    return bytes;
  }

  Rng rng{99};
};

INSTANTIATE_TEST_SUITE_P(Bits, CodeBlocksTest, testing::Range(1, kMaxCodeBits + 1));

TEST_P(CodeBlocksTest, BitsCostBits) {
  for (const int group_dim : {1, 2, 4, 8, 16}) {
    const CodeLayout codes = layout(group_dim);
    EXPECT_EQ(codes.tensor_bytes(kBlockCells) * 8,
              static_cast<std::size_t>(bits()) * kBlockCells * codes.n_codes());
    EXPECT_EQ(codes.tensor_bytes(0), 0U);
    EXPECT_EQ(codes.tensor_bytes(1), codes.block_bytes());
    EXPECT_EQ(codes.tensor_bytes(65), 2 * codes.block_bytes());
  }
}

// Any cells in any order, some several times, some none, runs of them.
TEST_P(CodeBlocksTest, GathersAnyCells) {
  constexpr std::size_t kCells = 200;
  const CodeLayout codes = layout(4);
  auto tensor = random_bytes(codes.tensor_bytes(kCells));
  std::vector<std::uint16_t> row(codes.n_codes());
  std::int32_t cells[kBlockCells];
  for (int t = 0; t < kBlockCells; t++) {
    cells[t] = t < 24 ? 57 + t : static_cast<std::int32_t>(rng.below(kCells));
  }
  cells[30] = cells[31] = -1;
  for (int head = 0; head < codes.spec.n_kv_heads(); head++) {
    for (int g = 0; g < codes.n_groups(head); g++) {
      ExactBuffer<std::uint16_t> group(kBlockCells);
      gather_group(codes, tensor.data(), head, g, cells, group.data());
      for (int t = 0; t < kBlockCells; t++) {
        if (cells[t] < 0) {
          EXPECT_EQ(group[t], 0);
          continue;
        }
        get_codes(codes, tensor.data(), static_cast<std::size_t>(cells[t]), row.data());
        ASSERT_EQ(group[t], row[codes.spec.first_code(head) + g]) << head << " " << g << " " << t;
      }
    }
  }
}

// Cells are put in random order into memory full of garbage, some of them twice.
TEST_P(CodeBlocksTest, GetsWhatWasPut) {
  constexpr std::size_t kCells = 150;
  for (const int group_dim : {1, 2, 4, 8, 16}) {
    const CodeLayout codes = layout(group_dim);
    auto tensor = random_bytes(codes.tensor_bytes(kCells));
    std::vector<std::vector<std::uint16_t>> model(kCells);
    for (std::size_t cell = 0; cell < kCells; cell++) {
      model[cell] = random_codes(codes.n_codes());
      put_codes(codes, tensor.data(), cell, model[cell].data());
    }
    for (int i = 0; i < 200; i++) {
      const std::size_t cell = rng.below(kCells);
      model[cell] = random_codes(codes.n_codes());
      put_codes(codes, tensor.data(), cell, model[cell].data());
    }
    std::vector<std::uint16_t> got(codes.n_codes());
    for (std::size_t cell = 0; cell < kCells; cell++) {
      get_codes(codes, tensor.data(), cell, got.data());
      ASSERT_EQ(got, model[cell]) << group_dim << " channels, cell " << cell;
    }
  }
}

TEST_P(CodeBlocksTest, NeighboursAreUntouched) {
  const CodeLayout codes = layout(8);
  auto tensor = random_bytes(codes.tensor_bytes(3 * kBlockCells));
  for (const std::size_t cell : {0, 1, 63, 64, 65, 127, 191}) {
    std::vector<std::vector<std::uint16_t>> before(3 * kBlockCells);
    for (std::size_t i = 0; i < before.size(); i++) {
      before[i].resize(codes.n_codes());
      get_codes(codes, tensor.data(), i, before[i].data());
    }
    before[cell] = random_codes(codes.n_codes());
    put_codes(codes, tensor.data(), cell, before[cell].data());
    std::vector<std::uint16_t> after(codes.n_codes());
    for (std::size_t i = 0; i < before.size(); i++) {
      get_codes(codes, tensor.data(), i, after.data());
      ASSERT_EQ(after, before[i]) << "cell " << i << " after putting " << cell;
    }
  }
}

TEST_P(CodeBlocksTest, UnpacksWholeGroups) {
  const CodeLayout codes = layout(4);
  const auto tensor = random_bytes(codes.tensor_bytes(2 * kBlockCells));
  std::vector<std::uint16_t> row(codes.n_codes());
  for (int at = 0; at < 2 * codes.n_codes(); at++) {
    const std::size_t block = at / codes.n_codes();
    const int code = at % codes.n_codes();
    // A copy of exactly the group's bytes: reading further is an error.
    ExactBuffer<std::uint8_t> bytes(codes.group_bytes());
    std::copy_n(tensor.data() +
                    codes.group_offset(block, code / codes.n_groups(0), code % codes.n_groups(0)),
                bytes.size(), bytes.data());
    ExactBuffer<std::uint16_t> unpacked(kBlockCells);
    unpack_group(bits(), bytes.data(), unpacked.data());
    for (int t = 0; t < kBlockCells; t++) {
      get_codes(codes, tensor.data(), block * kBlockCells + t, row.data());
      ASSERT_EQ(unpacked[t], row[code]) << "block " << block << ", code " << code << ", cell " << t;
    }
  }
}

// The format that files and copies rely on, spelled out for one code of cell 9.
TEST(CodeBlocks, PlanesLieAsTheHeaderSays) {
  const std::uint16_t code = 0b101100111010;

  struct Case {
    int bits;
    std::vector<std::pair<std::size_t, int>> bytes;  // offset and value; the rest is 0
  };

  const std::vector<Case> cases = {
      {3, {{8 + 1, 0b10}}},                               // bits 0 1 0: three mask words
      {4, {{4, 0b1010 << 4}}},                            // cell 9: high half of byte 4
      {6, {{4, 0b1010 << 4}, {32 + 1, 2}, {40 + 1, 2}}},  // bits 4 and 5
      {8, {{9, 0b00111010}}},
      {10, {{9, 0b00111010}, {64 + 1, 2}, {72 + 1, 2}}},
      {12, {{9, 0b00111010}, {64 + 1, 2}, {72 + 1, 2}, {88 + 1, 2}}},
  };
  for (const Case& expected : cases) {
    const CodeLayout layout(TensorSpec({8, expected.bits}, 1, 8));
    std::vector<std::uint8_t> want(layout.group_bytes());
    for (const auto& [offset, value] : expected.bytes) {
      want[offset] = static_cast<std::uint8_t>(value);
    }
    std::vector<std::uint8_t> tensor(layout.tensor_bytes(1));
    const auto low = static_cast<std::uint16_t>(code & ((1U << expected.bits) - 1U));
    put_codes(layout, tensor.data(), 9, &low);
    EXPECT_EQ(tensor, want) << expected.bits << " bits";
  }
}

// A million cells of a large model: tensors of more than 4 GiB.
TEST(CodeLayout, SizesBeyondThirtyTwoBits) {
  const CodeLayout layout(TensorSpec({2, 12}, 16, 256));  // 6 bits a channel, 4096 channels
  const std::size_t n_cells = std::size_t{1} << 21;
  EXPECT_EQ(layout.tensor_bytes(n_cells), n_cells * 4096 * 6 / 8);
  EXPECT_GT(layout.tensor_bytes(n_cells), std::size_t{1} << 32);
  const std::size_t last = n_cells / kBlockCells - 1;
  EXPECT_EQ(layout.group_offset(last, 15, 127) + layout.group_bytes(),
            layout.tensor_bytes(n_cells));
}

}  // namespace
}  // namespace cqkv
