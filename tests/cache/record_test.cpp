// Records: round trips for every code width, and refusal of every kind of row
// that does not belong. What is not here: the device's use of them (tests/device).
#include "cache/record.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "core/rng.h"

namespace cqkv {
namespace {

CodeLayout layout_of(int group_dim, int code_bits) {
  return CodeLayout(TensorSpec({group_dim, code_bits}, 3, 64));
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

// A row with a record, and one read from it.
struct Saved {
  std::vector<std::uint8_t> row;

  static Saved of(const CodeLayout& layout, const RecordHeader& header,
                  std::span<const std::uint16_t> codes, std::span<const std::uint8_t> exact,
                  std::size_t row_bytes) {
    Saved saved{std::vector<std::uint8_t>(row_bytes, 0xAB)};
    RecordScratch scratch;
    write_record(layout, header, codes.data(), exact, saved.row, scratch);
    return saved;
  }
};

struct Read {
  explicit Read(const CodeLayout& layout) : codes(layout.n_codes()) {}

  Status from(const CodeLayout& layout, std::span<const std::uint8_t> row,
              const RecordHeader& want) {
    header = want;
    const auto record = read_record(layout, row, header, codes.data(), scratch);
    if (!record.ok()) {
      return record.status();
    }
    content = record->content;
    exact.assign(record->exact.begin(), record->exact.end());
    return {};
  }

  RecordHeader header;
  std::vector<std::uint16_t> codes;
  RowContent content = RowContent::kEmpty;
  std::vector<std::uint8_t> exact;
  RecordScratch scratch;
};

bool all_finite(std::span<const std::uint8_t> row) {
  for (std::size_t i = 0; i + 1 < row.size(); i += 2) {
    if ((row[i + 1] & 0x7CU) == 0x7CU) {
      return false;
    }
  }
  return true;
}

// A row without codes still says which cell it is of, and may hold an exact row.
TEST(Record, RoundTripsNoCodes) {
  const CodeLayout layout(TensorSpec(8, {0, 0}, 64));
  const std::size_t n_exact = ExactRowLayout{layout.n_channels()}.row_bytes();
  const std::vector<std::uint8_t> exact(n_exact, 0);
  for (const bool with_exact : {false, true}) {
    const std::size_t row_bytes = record_row_bytes(layout) + (with_exact ? 2 * n_exact : 0);
    const Saved saved =
        Saved::of(layout, kHeader, {},
                  with_exact ? std::span(exact) : std::span<const std::uint8_t>(), row_bytes);
    EXPECT_TRUE(all_finite(saved.row));
    Read read(layout);
    const Status status = read.from(layout, saved.row, kHeader);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(read.content, RowContent::kRecord);
    EXPECT_EQ(read.header.position, 4711);
    EXPECT_EQ(read.exact.size(), with_exact ? n_exact : 0);
  }
}

TEST(Record, RoundTripsEveryWidth) {
  for (const int group_dim : {1, 2, 4, 8, 16}) {
    for (int bits = 1; bits <= kMaxCodeBits; bits++) {
      const CodeLayout layout = layout_of(group_dim, bits);
      const auto codes = random_codes(layout, bits);
      for (const std::size_t more : {0, 2, 100}) {
        const Saved saved = Saved::of(layout, kHeader, codes, {}, record_row_bytes(layout) + more);
        Read read(layout);
        RecordHeader want = kHeader;
        want.position = 0;
        const Status status = read.from(layout, saved.row, want);
        ASSERT_TRUE(status.ok()) << status.message();
        EXPECT_EQ(read.content, RowContent::kRecord);
        EXPECT_EQ(read.header.position, 4711);
        EXPECT_EQ(read.codes, codes) << group_dim << "c" << bits << "b";
      }
    }
  }
}

TEST(Record, FitsAPlainRowOfTheSmallestHeads) {
  const CodeLayout layout(TensorSpec({8, 8}, 1, 64));
  EXPECT_LE(record_row_bytes(layout), 2U * 64);
}

TEST(Record, AllZeroIsEmpty) {
  const CodeLayout layout = layout_of(8, 8);
  Read read(layout);
  read.content = RowContent::kRecord;
  ASSERT_TRUE(read.from(layout, std::vector<std::uint8_t>(384, 0), kHeader).ok());
  EXPECT_EQ(read.content, RowContent::kEmpty);
}

// An engine without the device reads saved rows as 16-bit floats. A NaN among them spoils its
// cache for good: masked cells are multiplied by 0.
TEST(Record, IsARowOfFiniteFloats) {
  for (const auto& [group_dim, bits] : {std::pair{8, 8}, {4, 8}, {2, 8}, {8, 12}, {1, 8}}) {
    const CodeLayout layout = layout_of(group_dim, bits);
    const ExactRowLayout exact{layout.n_channels()};
    Rng rng(bits);
    std::vector<std::uint8_t> noise(record_holds_exact_row(layout, 384) ? exact.row_bytes()
                                                                        : std::size_t{0});
    for (auto& byte : noise) {
      byte = static_cast<std::uint8_t>(rng.uniform() < 0.5 ? 0xFF : rng.below(256));
    }
    auto codes = random_codes(layout, 3);
    std::fill(codes.begin(), codes.begin() + layout.n_codes() / 2,
              static_cast<std::uint16_t>(layout.spec.n_centroids() - 1));
    RecordHeader header = kHeader;
    header.identity = ~0ULL;
    header.position = INT32_MAX;
    EXPECT_TRUE(all_finite(Saved::of(layout, header, codes, noise, 384).row))
        << group_dim << "c" << bits << "b";
  }
}

TEST(Record, RefusesEveryFlippedBit) {
  const CodeLayout layout = layout_of(4, 8);
  const ExactRowLayout exact{layout.n_channels()};
  const std::vector<std::uint8_t> zeros(exact.row_bytes());
  const Saved good = Saved::of(layout, kHeader, random_codes(layout, 1), zeros, 384);
  Read read(layout);
  ASSERT_TRUE(read.from(layout, good.row, kHeader).ok());
  for (std::size_t bit = 0; bit < good.row.size() * 8; bit++) {
    auto row = good.row;
    row[bit / 8] ^= static_cast<std::uint8_t>(1U << bit % 8);
    const Status status = read.from(layout, row, kHeader);
    ASSERT_FALSE(status.ok()) << "bit " << bit;
    ASSERT_EQ(status.code(), bit < 16 ? StatusCode::kMismatch : StatusCode::kCorrupt) << bit;
  }
}

TEST(Record, RefusesWhatDoesNotBelong) {
  const CodeLayout layout = layout_of(8, 8);
  const auto codes = random_codes(layout, 1);
  Read read(layout);
  const auto code_of = [&](auto&& change) {
    RecordHeader header = kHeader;
    change(header);
    return read.from(layout, Saved::of(layout, header, codes, {}, 384).row, kHeader).code();
  };
  EXPECT_EQ(code_of([](RecordHeader&) {}), StatusCode::kOk);
  EXPECT_EQ(code_of([](RecordHeader& h) { h.kind = KvKind::kKey; }), StatusCode::kMismatch);
  EXPECT_EQ(code_of([](RecordHeader& h) { h.identity++; }), StatusCode::kMismatch);
  EXPECT_EQ(code_of([](RecordHeader& h) { h.layer++; }), StatusCode::kMismatch);
  EXPECT_EQ(code_of([](RecordHeader& h) { h.position = -1; }), StatusCode::kCorrupt);
  const Saved good = Saved::of(layout, kHeader, codes, {}, 384);
  const std::span<const std::uint8_t> cut(good.row.data(), record_row_bytes(layout) - 2);
  EXPECT_EQ(read.from(layout, cut, kHeader).code(), StatusCode::kCorrupt);
  std::vector<std::uint8_t> plain(384, 0x3C);
  EXPECT_EQ(read.from(layout, plain, kHeader).code(), StatusCode::kMismatch);
  plain[0] = 0xC9;
  plain[1] = 0x7E;
  EXPECT_NE(read.from(layout, plain, kHeader).message().find("older version"), std::string::npos);
}

TEST(Record, CarriesAnExactRow) {
  const CodeLayout layout = layout_of(4, 8);
  const ExactRowLayout exact{layout.n_channels()};
  const auto codes = random_codes(layout, 2);
  std::vector<float> row(static_cast<std::size_t>(exact.n_channels), 0.25F);
  const std::vector<float> zeros(row.size());
  std::vector<std::uint8_t> bytes(exact.row_bytes());
  write_exact_row(exact, row.data(), zeros.data(), bytes.data());
  ASSERT_TRUE(record_holds_exact_row(layout, 2 * row.size()));
  for (const bool sink : {false, true}) {
    RecordHeader header = kHeader;
    header.window = {.sink = sink, .needed = !sink, .mark_age = 700};
    Read read(layout);
    const Status status =
        read.from(layout, Saved::of(layout, header, codes, bytes, 2 * row.size()).row, kHeader);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(read.codes, codes);
    EXPECT_EQ(read.header.window.sink, sink);
    EXPECT_EQ(read.header.window.needed, !sink);
    EXPECT_EQ(read.header.window.mark_age, 700);
    EXPECT_EQ(read.exact, bytes);
  }
  // A scale that makes scores infinite would spoil every query that has the row in its tile.
  for (const float wild : {NAN, INFINITY, -1.0F, 1e30F, 600.0F}) {
    std::memcpy(bytes.data(), &wild, sizeof(wild));
    Read read(layout);
    EXPECT_EQ(
        read.from(layout, Saved::of(layout, kHeader, codes, bytes, 2 * row.size()).row, kHeader)
            .code(),
        StatusCode::kCorrupt)
        << wild;
  }
}

TEST(Record, HighRatesHaveNoRoomForAnExactRow) {
  EXPECT_TRUE(record_holds_exact_row(layout_of(8, 8), 384));
  EXPECT_TRUE(record_holds_exact_row(layout_of(2, 8), 384));
  EXPECT_FALSE(record_holds_exact_row(layout_of(1, 6), 384));
  EXPECT_FALSE(record_holds_exact_row(layout_of(1, 8), 384));
  EXPECT_LE(record_row_bytes(layout_of(1, 12)), 384U);
}

}  // namespace
}  // namespace cqkv
