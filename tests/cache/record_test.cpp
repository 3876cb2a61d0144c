// Records: round trips for every code width, and refusal of every kind of row
// that does not belong. What is not here: the device's use of them (tests/device).
#include "cache/record.h"

#include <cmath>
#include <cstring>
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
      write_record(layout, kHeader, codes.data(), {}, row);
      RecordHeader want = kHeader;
      want.position = 0;
      std::vector<std::uint16_t> back(codes.size());
      const auto content = read_record(layout, row, want, back.data());
      ASSERT_TRUE(content.ok()) << content.status().message();
      EXPECT_EQ(content->content, RowContent::kRecord);
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
  EXPECT_EQ(content->content, RowContent::kEmpty);
}

TEST(Record, RefusesWhatDoesNotBelong) {
  const CodeLayout layout = layout_of(8, 8);
  const auto codes = random_codes(layout, 1);
  std::vector<std::uint8_t> good(384);
  write_record(layout, kHeader, codes.data(), {}, good);
  std::vector<std::uint16_t> back(codes.size());
  const auto code_after = [&](std::size_t offset, std::uint8_t value) {
    auto row = good;
    row[offset] = value;
    RecordHeader want = kHeader;
    return read_record(layout, row, want, back.data()).status().code();
  };
  EXPECT_EQ(code_after(0, 0), StatusCode::kMismatch);   // plain data
  EXPECT_EQ(code_after(2, 1), StatusCode::kCorrupt);    // version
  EXPECT_EQ(code_after(3, 0), StatusCode::kMismatch);   // a key
  EXPECT_EQ(code_after(3, 9), StatusCode::kMismatch);   // no kind at all
  EXPECT_EQ(code_after(8, 0), StatusCode::kMismatch);   // another codebook
  EXPECT_EQ(code_after(16, 8), StatusCode::kMismatch);  // another layer
  EXPECT_EQ(code_after(18, 99), StatusCode::kCorrupt);  // another number of codes
  RecordHeader want = kHeader;
  const std::span<const std::uint8_t> cut(good.data(), record_bytes(layout) - 1);
  EXPECT_EQ(read_record(layout, cut, want, back.data()).status().code(), StatusCode::kCorrupt);
}

TEST(Record, CarriesAnExactRow) {
  const CodeLayout layout = layout_of(4, 8);
  const ExactRowLayout exact{layout.n_kv_heads * layout.head_dim};
  const auto codes = random_codes(layout, 2);
  std::vector<float> row(static_cast<std::size_t>(exact.n_channels), 0.25F);
  const std::vector<float> zeros(row.size());
  std::vector<std::uint8_t> bytes(exact.row_bytes());
  write_exact_row(exact, row.data(), zeros.data(), bytes.data());
  std::vector<std::uint8_t> saved(2 * row.size());
  ASSERT_TRUE(record_holds_exact_row(layout, saved.size()));
  RecordHeader header = kHeader;
  header.sink = true;
  write_record(layout, header, codes.data(), bytes, saved);
  RecordHeader want = kHeader;
  std::vector<std::uint16_t> back(codes.size());
  const auto content = read_record(layout, saved, want, back.data());
  ASSERT_TRUE(content.ok()) << content.status().message();
  EXPECT_EQ(back, codes);
  EXPECT_TRUE(want.sink);
  EXPECT_EQ(std::vector<std::uint8_t>(content->exact.begin(), content->exact.end()), bytes);
  // A scale that makes scores infinite would spoil every query that has the row in its tile.
  for (const float wild : {NAN, INFINITY, -1.0F, 1e30F, 600.0F}) {
    std::memcpy(saved.data() + record_bytes(layout), &wild, sizeof(wild));
    EXPECT_EQ(read_record(layout, saved, want, back.data()).status().code(), StatusCode::kCorrupt)
        << wild;
  }
}

TEST(Record, HighRatesHaveNoRoomForAnExactRow) {
  EXPECT_TRUE(record_holds_exact_row(layout_of(8, 8), 384));
  EXPECT_TRUE(record_holds_exact_row(layout_of(2, 8), 384));
  EXPECT_FALSE(record_holds_exact_row(layout_of(1, 8), 384));
  std::vector<std::uint8_t> row(384);
  const auto codes = random_codes(layout_of(1, 8), 1);
  write_record(layout_of(1, 8), kHeader, codes.data(), {}, row);
  row[20] = 1;
  RecordHeader want = kHeader;
  std::vector<std::uint16_t> back(codes.size());
  EXPECT_EQ(read_record(layout_of(1, 8), row, want, back.data()).status().code(),
            StatusCode::kCorrupt);
}

TEST(Record, RefusesNegativePositions) {
  const CodeLayout layout = layout_of(8, 8);
  std::vector<std::uint8_t> row(384);
  RecordHeader header = kHeader;
  header.position = -1;
  write_record(layout, header, random_codes(layout, 1).data(), {}, row);
  std::vector<std::uint16_t> back(layout.n_codes());
  EXPECT_EQ(read_record(layout, row, header, back.data()).status().code(), StatusCode::kCorrupt);
}

TEST(Record, TagIsAHalfFloatNan) {
  EXPECT_EQ(kRecordTag & 0x7C00U, 0x7C00U);
  EXPECT_NE(kRecordTag & 0x03FFU, 0U);
}

}  // namespace
}  // namespace cqkv
