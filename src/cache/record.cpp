// Reading and writing of records; the layout is in record.h.
#include "cache/record.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <string>

namespace cqkv {
namespace {

template <typename T>
void put(std::span<std::uint8_t> row, std::size_t offset, T value) {
  std::memcpy(row.data() + offset, &value, sizeof(T));
}

template <typename T>
T get(std::span<const std::uint8_t> row, std::size_t offset) {
  T value{};
  std::memcpy(&value, row.data() + offset, sizeof(T));
  return value;
}

std::string hex(std::uint64_t value) {
  std::array<char, 20> text{};
  std::snprintf(text.data(), text.size(), "%016llx", static_cast<unsigned long long>(value));
  return text.data();
}

void pack(const CodeLayout& layout, const std::uint16_t* codes, std::uint8_t* out) {
  const int bits = layout.spec.code_bits;
  std::uint32_t pending = 0;
  int n_pending = 0;
  for (int i = 0; i < layout.n_codes(); i++) {
    pending |= static_cast<std::uint32_t>(codes[i]) << n_pending;
    n_pending += bits;
    for (; n_pending >= 8; n_pending -= 8) {
      *out++ = static_cast<std::uint8_t>(pending);
      pending >>= 8U;
    }
  }
  if (n_pending > 0) {
    *out = static_cast<std::uint8_t>(pending);
  }
}

void unpack(const CodeLayout& layout, const std::uint8_t* in, std::uint16_t* codes) {
  const int bits = layout.spec.code_bits;
  const std::uint32_t mask = (1U << static_cast<unsigned>(bits)) - 1U;
  std::uint32_t pending = 0;
  int n_pending = 0;
  for (int i = 0; i < layout.n_codes(); i++) {
    for (; n_pending < bits; n_pending += 8) {
      pending |= static_cast<std::uint32_t>(*in++) << n_pending;
    }
    codes[i] = static_cast<std::uint16_t>(pending & mask);
    pending >>= static_cast<unsigned>(bits);
    n_pending -= bits;
  }
}

constexpr std::uint8_t kExactFlag = 1;
constexpr std::uint8_t kSinkFlag = 2;

// A scale that makes scores infinite would spoil more than its own row.
Status check_exact(const CodeLayout& layout, std::span<const std::uint8_t> row) {
  if (!record_holds_exact_row(layout, row.size())) {
    return corrupt("record with an exact row, for which a row of " + std::to_string(row.size()) +
                   " bytes has no room");
  }
  const ExactRowLayout exact{layout.n_channels()};
  for (std::size_t i = 0; i < exact.n_scales(); i++) {
    const auto scale = get<float>(row, record_bytes(layout) + i * sizeof(float));
    if (!(scale >= 0.0F && scale <= ExactRowLayout::kLargestScale)) {
      return corrupt("record with an exact row whose scale " + std::to_string(i) + " is " +
                     std::to_string(scale) + ", want one from 0 to " +
                     std::to_string(ExactRowLayout::kLargestScale));
    }
  }
  return {};
}

Status mismatch(std::string message) {
  return {StatusCode::kMismatch, std::move(message)};
}

}  // namespace

std::size_t record_bytes(const CodeLayout& layout) {
  const auto bits = static_cast<std::size_t>(layout.n_codes()) * layout.spec.code_bits;
  return kRecordHeaderBytes + (bits + 7) / 8;
}

bool record_holds_exact_row(const CodeLayout& layout, std::size_t row_bytes) {
  const ExactRowLayout exact{layout.n_channels()};
  return record_bytes(layout) + exact.row_bytes() <= row_bytes;
}

void write_record(const CodeLayout& layout, const RecordHeader& header, const std::uint16_t* codes,
                  std::span<const std::uint8_t> exact, std::span<std::uint8_t> row) {
  std::fill(row.begin(), row.end(), std::uint8_t{0});
  put(row, 0, kRecordTag);
  put(row, 2, kRecordVersion);
  put(row, 3, static_cast<std::uint8_t>(header.kind == KvKind::kKey ? 0 : 1));
  put(row, 4, header.position);
  put(row, 8, header.identity);
  put(row, 16, static_cast<std::uint16_t>(header.layer));
  put(row, 18, static_cast<std::uint16_t>(layout.n_codes()));
  put(row, 20,
      static_cast<std::uint8_t>((exact.empty() ? 0 : kExactFlag) | (header.sink ? kSinkFlag : 0)));
  pack(layout, codes, row.data() + kRecordHeaderBytes);
  std::copy(exact.begin(), exact.end(),
            row.begin() + static_cast<std::ptrdiff_t>(record_bytes(layout)));
}

Result<RecordRow> read_record(const CodeLayout& layout, std::span<const std::uint8_t> row,
                              RecordHeader& want, std::uint16_t* codes) {
  if (std::all_of(row.begin(), row.end(), [](std::uint8_t byte) { return byte == 0; })) {
    return RecordRow();
  }
  if (row.size() < record_bytes(layout)) {
    return corrupt("record: row of " + std::to_string(row.size()) + " bytes, want at least " +
                   std::to_string(record_bytes(layout)));
  }
  if (get<std::uint16_t>(row, 0) != kRecordTag) {
    return mismatch(
        "the saved row holds plain 16-bit data, not codes: it was saved without a "
        "codebook; process the prompt again");
  }
  if (row[2] != kRecordVersion) {
    return corrupt("record version " + std::to_string(row[2]) + ", want " +
                   std::to_string(kRecordVersion));
  }
  const auto identity = get<std::uint64_t>(row, 8);
  if (identity != want.identity) {
    return mismatch("the saved row was coded with codebook " + hex(identity) +
                    ", the codebook in use is " + hex(want.identity) +
                    "; use that codebook or process the prompt again");
  }
  const KvKind kind = row[3] == 0 ? KvKind::kKey : KvKind::kValue;
  const int layer = get<std::uint16_t>(row, 16);
  if (row[3] > 1 || kind != want.kind || layer != want.layer) {
    return mismatch("the saved row is a " + std::string(kv_kind_name(kind)) + " of layer " +
                    std::to_string(layer) + ", want a " + std::string(kv_kind_name(want.kind)) +
                    " of layer " + std::to_string(want.layer));
  }
  if (get<std::uint16_t>(row, 18) != static_cast<std::uint16_t>(layout.n_codes())) {
    return corrupt("record of " + std::to_string(get<std::uint16_t>(row, 18)) + " codes, want " +
                   std::to_string(layout.n_codes()));
  }
  want.position = get<std::int32_t>(row, 4);
  if (want.position < 0) {
    return corrupt("record of position " + std::to_string(want.position) + ", want at least 0");
  }
  want.sink = (row[20] & kSinkFlag) != 0;
  RecordRow result{.content = RowContent::kRecord, .exact = {}};
  if ((row[20] & kExactFlag) != 0) {
    CQKV_RETURN_IF_ERROR(check_exact(layout, row));
    const ExactRowLayout exact{layout.n_channels()};
    result.exact = row.subspan(record_bytes(layout), exact.row_bytes());
  }
  unpack(layout, row.data() + kRecordHeaderBytes, codes);
  return result;
}

}  // namespace cqkv
