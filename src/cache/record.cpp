// Reading and writing of records; the layout is in record.h.
#include "cache/record.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <string>

#include "core/hash.h"

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

constexpr std::uint8_t kValueFlag = 1;
constexpr std::uint8_t kExactFlag = 2;
constexpr std::uint8_t kSinkFlag = 4;
constexpr std::uint8_t kNeededFlag = 8;

constexpr std::size_t kChecksumOffset = 16;

// The tag of versions 1 and 2.
constexpr std::uint16_t kOldTag = 0x7EC9;

// ---- Rows of finite floats ---------------------------------------------------

constexpr unsigned kPieceBits = 15;
constexpr std::uint32_t kPieceMask = (1U << kPieceBits) - 1U;
constexpr std::uint32_t kHighestExponentBit = 1U << 14U;

// Bytes of a record that a row has room for.
std::size_t capacity_of(std::size_t row_bytes) {
  const std::size_t n_floats = row_bytes / sizeof(std::uint16_t);
  return n_floats == 0 ? 0 : (n_floats - 1) * kPieceBits / 8;
}

// Bit 14 of a piece is bit 15 of its float.
void put_pieces(std::span<const std::uint8_t> record, std::span<std::uint8_t> row) {
  put(row, 0, kRecordTag);
  std::uint32_t pending = 0;
  unsigned n_pending = 0;
  std::size_t next = 0;
  for (std::size_t at = sizeof(std::uint16_t); at + 1 < row.size(); at += sizeof(std::uint16_t)) {
    for (; n_pending < kPieceBits; n_pending += 8) {
      pending |= (next < record.size() ? std::uint32_t{record[next]} : 0U) << n_pending;
      next++;
    }
    const std::uint32_t piece = pending & kPieceMask;
    put(row, at,
        static_cast<std::uint16_t>((piece & (kHighestExponentBit - 1U)) |
                                   (piece & kHighestExponentBit) << 1U));
    pending >>= kPieceBits;
    n_pending -= kPieceBits;
  }
}

// False if a float is not such a piece, or bits that no record has are not 0.
bool take_pieces(std::span<const std::uint8_t> row, RecordScratch& record) {
  record.assign(capacity_of(row.size()), 0);
  std::uint32_t pending = 0;
  unsigned n_pending = 0;
  std::size_t next = 0;
  for (std::size_t at = sizeof(std::uint16_t); at + 1 < row.size(); at += sizeof(std::uint16_t)) {
    const std::uint32_t piece = get<std::uint16_t>(row, at);
    if ((piece & kHighestExponentBit) != 0) {
      return false;
    }
    pending |= ((piece & (kHighestExponentBit - 1U)) | (piece >> 1U & kHighestExponentBit))
               << n_pending;
    n_pending += kPieceBits;
    for (; n_pending >= 8 && next < record.size(); n_pending -= 8) {
      record[next++] = static_cast<std::uint8_t>(pending);
      pending >>= 8U;
    }
  }
  return pending == 0;
}

// Takes the checksum out of the record.
std::uint32_t take_checksum(std::span<std::uint8_t> record) {
  const auto found = get<std::uint32_t>(record, kChecksumOffset);
  put(record, kChecksumOffset, std::uint32_t{0});
  return found;
}

std::uint32_t checksum_of(std::span<const std::uint8_t> record) {
  return static_cast<std::uint32_t>(hash_bytes(record.data(), record.size()));
}

// Bytes of a record without an exact row.
std::size_t record_bytes(const CodeLayout& layout) {
  const auto bits = static_cast<std::size_t>(layout.n_codes()) * layout.spec.code_bits;
  return kRecordHeaderBytes + (bits + 7) / 8;
}

// A scale that makes scores infinite would spoil more than its own row.
Status check_exact(const CodeLayout& layout, std::span<const std::uint8_t> record) {
  const ExactRowLayout exact{layout.n_channels()};
  const std::size_t want = record_bytes(layout) + exact.row_bytes();
  if (record.size() < want) {
    return corrupt("record with an exact row: got room for " + std::to_string(record.size()) +
                   " bytes, want " + std::to_string(want));
  }
  for (std::size_t i = 0; i < exact.n_scales(); i++) {
    const auto scale = get<float>(record, record_bytes(layout) + i * sizeof(float));
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

std::size_t row_bytes_of(std::size_t record_bytes) {
  const std::size_t n_pieces = (record_bytes * 8 + kPieceBits - 1) / kPieceBits;
  return (1 + n_pieces) * sizeof(std::uint16_t);
}

// What a row that is not empty holds, checked and without its checksum, in `scratch`.
Status take_record(const CodeLayout& layout, std::span<const std::uint8_t> row,
                   RecordScratch& scratch) {
  const std::size_t want = row_bytes_of(record_bytes(layout));
  if (row.size() < want) {
    return corrupt("record: row of " + std::to_string(row.size()) + " bytes, want at least " +
                   std::to_string(want));
  }
  const auto tag = get<std::uint16_t>(row, 0);
  if (tag == kOldTag) {
    return mismatch(
        "the saved row was written by an older version of cqkv; process the prompt again");
  }
  if (tag != kRecordTag) {
    return mismatch(
        "the saved row holds plain 16-bit data, not codes: it was saved without a "
        "codebook; process the prompt again");
  }
  const bool pieces = take_pieces(row, scratch);
  const std::uint32_t found = take_checksum(scratch);
  if (!pieces || found != checksum_of(scratch)) {
    return corrupt("the saved row is damaged: got checksum " + hex(found) + ", want " +
                   hex(checksum_of(scratch)) + "; process the prompt again");
  }
  return {};
}

Status check_owner(std::span<const std::uint8_t> record, const RecordHeader& want) {
  if (record[0] != kRecordVersion) {
    return corrupt("record version " + std::to_string(record[0]) + ", want " +
                   std::to_string(kRecordVersion));
  }
  const auto identity = get<std::uint64_t>(record, 8);
  if (identity != want.identity) {
    return mismatch("the saved row was coded with codebook " + hex(identity) +
                    ", the codebook in use is " + hex(want.identity) +
                    "; use that codebook or process the prompt again");
  }
  const KvKind kind = (record[1] & kValueFlag) == 0 ? KvKind::kKey : KvKind::kValue;
  const int layer = get<std::uint16_t>(record, 2);
  if (kind != want.kind || layer != want.layer) {
    return mismatch("the saved row is a " + std::string(kv_kind_name(kind)) + " of layer " +
                    std::to_string(layer) + ", want a " + std::string(kv_kind_name(want.kind)) +
                    " of layer " + std::to_string(want.layer));
  }
  return {};
}

}  // namespace

std::size_t record_row_bytes(const CodeLayout& layout) {
  return row_bytes_of(record_bytes(layout));
}

bool record_holds_exact_row(const CodeLayout& layout, std::size_t row_bytes) {
  const ExactRowLayout exact{layout.n_channels()};
  return record_bytes(layout) + exact.row_bytes() <= capacity_of(row_bytes);
}

void write_record(const CodeLayout& layout, const RecordHeader& header, const std::uint16_t* codes,
                  std::span<const std::uint8_t> exact, std::span<std::uint8_t> row,
                  RecordScratch& scratch) {
  scratch.assign(capacity_of(row.size()), 0);
  put(scratch, 0, kRecordVersion);
  put(scratch, 2, static_cast<std::uint16_t>(header.layer));
  put(scratch, 4, header.position);
  put(scratch, 8, header.identity);
  std::uint8_t flags = header.kind == KvKind::kKey ? 0 : kValueFlag;
  if (!exact.empty()) {
    flags |= kExactFlag | (header.window.sink ? kSinkFlag : 0U) |
             (header.window.needed ? kNeededFlag : 0U);
    put(scratch, 20, header.window.mark_age);
  }
  put(scratch, 1, flags);
  pack(layout, codes, scratch.data() + kRecordHeaderBytes);
  std::copy(exact.begin(), exact.end(),
            scratch.begin() + static_cast<std::ptrdiff_t>(record_bytes(layout)));
  put(scratch, kChecksumOffset, checksum_of(scratch));
  put_pieces(scratch, row);
}

Result<RecordRow> read_record(const CodeLayout& layout, std::span<const std::uint8_t> row,
                              RecordHeader& want, std::uint16_t* codes, RecordScratch& scratch) {
  if (std::all_of(row.begin(), row.end(), [](std::uint8_t byte) { return byte == 0; })) {
    return RecordRow();
  }
  CQKV_RETURN_IF_ERROR(take_record(layout, row, scratch));
  const std::span<const std::uint8_t> record = scratch;
  CQKV_RETURN_IF_ERROR(check_owner(record, want));
  want.position = get<std::int32_t>(record, 4);
  if (want.position < 0) {
    return corrupt("record of position " + std::to_string(want.position) + ", want at least 0");
  }
  const std::uint8_t flags = record[1];
  want.window = {.sink = (flags & kSinkFlag) != 0,
                 .needed = (flags & kNeededFlag) != 0,
                 .mark_age = get<std::uint16_t>(record, 20)};
  RecordRow result{.content = RowContent::kRecord, .exact = {}};
  if ((flags & kExactFlag) != 0) {
    CQKV_RETURN_IF_ERROR(check_exact(layout, record));
    const ExactRowLayout exact{layout.n_channels()};
    result.exact = record.subspan(record_bytes(layout), exact.row_bytes());
  }
  unpack(layout, record.data() + kRecordHeaderBytes, codes);
  return result;
}

}  // namespace cqkv
