// Records: round trips for every code width, and refusal of every kind of row
// that does not belong. What is not here: the device's use of them (tests/device).
#include "cache/record.h"

#include <vector>

#include <gtest/gtest.h>

#include "core/rng.h"

namespace cqkv {
namespace {

CodeLayout layout_of(int group_dim, int code_bits) {
  return {.spec = {group_dim, code_bits}, .n_kv_heads = 3, .head_dim = 64};
}

std::vector<std::uint16_t> random_codes(const CodeLayout& layout, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<std::uint16_t> codes(layout.n_codes());
  for (auto& code : codes) {
    code = static_cast<std::uint16_t>(rng.below(layout.spec.n_centroids()));
  }
  return codes;
}

const RecordHeader kHeader{
    .kind = KvKind::kValue, .layer = 7, .identity = 0x123456789ABCDEFULL, .position = 4711};

TEST(Record, RoundTripsEveryWidth) {
  for (const int group_dim : {1, 2, 4, 8, 16}) {
    for (int bits = 1; bits <= kMaxCodeBits; bits++) {
      const CodeLayout layout = layout_of(group_dim, bits);
      const auto codes = random_codes(layout, bits);
      std::vector<std::uint8_t> row(record_bytes(layout), 0xAB);
      write_record(layout, kHeader, codes.data(), row);
      RecordHeader want = kHeader;
      want.position = 0;
      std::vector<std::uint16_t> back(codes.size());
      const auto content = read_record(layout, row, want, back.data());
      ASSERT_TRUE(content.ok()) << content.status().message();
      EXPECT_EQ(*content, RowContent::kRecord);
      EXPECT_EQ(want.position, 4711);
      EXPECT_EQ(back, codes) << group_dim << "c" << bits << "b";
    }
  }
}

TEST(Record, FitsAPlainRowOfTheSmallestHeads) {
  const CodeLayout layout{.spec = {8, 8}, .n_kv_heads = 1, .head_dim = 64};
  EXPECT_LE(record_bytes(layout), 2U * 64);
}

TEST(Record, AllZeroIsEmpty) {
  const CodeLayout layout = layout_of(8, 8);
  const std::vector<std::uint8_t> row(384, 0);
  RecordHeader want = kHeader;
  std::vector<std::uint16_t> codes(layout.n_codes());
  const auto content = read_record(layout, row, want, codes.data());
  ASSERT_TRUE(content.ok());
  EXPECT_EQ(*content, RowContent::kEmpty);
}

TEST(Record, RefusesWhatDoesNotBelong) {
  const CodeLayout layout = layout_of(8, 8);
  const auto codes = random_codes(layout, 1);
  std::vector<std::uint8_t> good(384);
  write_record(layout, kHeader, codes.data(), good);
  std::vector<std::uint16_t> back(codes.size());
  const auto code_after = [&](std::size_t offset, std::uint8_t value) {
    auto row = good;
    row[offset] = value;
    RecordHeader want = kHeader;
    return read_record(layout, row, want, back.data()).status().code();
  };
  EXPECT_EQ(code_after(0, 0), StatusCode::kMismatch);   // plain data
  EXPECT_EQ(code_after(2, 2), StatusCode::kCorrupt);    // version
  EXPECT_EQ(code_after(3, 0), StatusCode::kMismatch);   // a key
  EXPECT_EQ(code_after(3, 9), StatusCode::kMismatch);   // no kind at all
  EXPECT_EQ(code_after(8, 0), StatusCode::kMismatch);   // another codebook
  EXPECT_EQ(code_after(16, 8), StatusCode::kMismatch);  // another layer
  EXPECT_EQ(code_after(18, 99), StatusCode::kCorrupt);  // another number of codes
  RecordHeader want = kHeader;
  const std::span<const std::uint8_t> cut(good.data(), record_bytes(layout) - 1);
  EXPECT_EQ(read_record(layout, cut, want, back.data()).status().code(), StatusCode::kCorrupt);
}

TEST(Record, TagIsAHalfFloatNan) {
  EXPECT_EQ(kRecordTag & 0x7C00U, 0x7C00U);
  EXPECT_NE(kRecordTag & 0x03FFU, 0U);
}

}  // namespace
}  // namespace cqkv
