// Records: one cell of one coded tensor as bytes, in the place of the 16-bit row
// that the engine saves and restores. A record carries what is needed to refuse
// it: the codebook's identity, layer, kind and position, and a checksum.
//
// An engine without the device may read the row as 16-bit floats. They must be finite: one NaN
// would spoil its cache even after the row is erased. So the row is a tag and then the record in
// pieces of 15 bits, each in the place of a float below 2: bits 0 to 13 and 15; bit 14, the
// highest of the exponent, is 0.
//
// The record, little-endian, `kRecordHeaderBytes` and then the codes, bit-packed:
//
//   0  u8   version of this layout (3)
//   1  u8   bit 0: a value, else a key; bit 1: an exact row follows the codes; bit 2: the token is
//           a sink; bit 3: its row was needed (exact_window.h)
//   2  u16  layer
//   4  i32  position
//   8  u64  codebook identity
//   16 u32  checksum: the low half of XXH3-64 of the record, with 0 here, and the zeros after it
//   20 u16  mark age of the exact row (exact_window.h)
//   22      codes: code i in bits [i b, (i + 1) b), lowest bit first
//           then, if it has one, the exact row (exact_row.h), at the next byte; then zeros
//
// A row of zeros is an empty cell. See docs/architecture.md, "Records".
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cqkv/status.h"

#include "cache/exact_window.h"
#include "codec/code_blocks.h"
#include "codec/exact_row.h"

namespace cqkv {

inline constexpr std::uint16_t kRecordTag = 0x2C51;  // as a float: 0.0675
inline constexpr std::uint8_t kRecordVersion = 3;
inline constexpr std::size_t kRecordHeaderBytes = 22;

struct RecordHeader {
  KvKind kind = KvKind::kKey;
  int layer = 0;
  std::uint64_t identity = 0;
  std::int32_t position = 0;
  /// Of a token without an exact row nothing.
  ExactWindow::Saved window{.sink = false, .needed = false, .mark_age = 0};
};

/// Bytes of a row that holds a record of this layout without an exact row.
std::size_t record_row_bytes(const CodeLayout& layout);

/// Whether a row of `row_bytes` has room for the exact row of n_channels too; rates above 5
/// bits a channel do not, and lose their window when saved.
bool record_holds_exact_row(const CodeLayout& layout, std::size_t row_bytes);

/// Memory for a record out of its row; kept between calls.
using RecordScratch = std::vector<std::uint8_t>;

/// Writes a record into `row`, all of whose bytes are set. `row` holds at least
/// record_row_bytes, and `exact`, the exact row or nothing, besides. May throw std::bad_alloc.
void write_record(const CodeLayout& layout, const RecordHeader& header, const std::uint16_t* codes,
                  std::span<const std::uint8_t> exact, std::span<std::uint8_t> row,
                  RecordScratch& scratch);

/// What a row is.
enum class RowContent { kEmpty, kRecord };

/// A record as read.
struct RecordRow {
  RowContent content = RowContent::kEmpty;
  std::span<const std::uint8_t> exact;  ///< The exact row, inside the scratch, or nothing.
};

/// Reads a row. kEmpty if all its bytes are zero; otherwise `want` says which kind,
/// layer and identity are expected and gets position and window, and `codes` [n_codes] the codes.
/// May throw std::bad_alloc.
///
/// @return kCorrupt if it is no record of this version, was changed since it was written, or
///   does not fit the row, kMismatch (naming both identities) if it belongs to another
///   codebook, layer or kind. Outputs are then undefined.
Result<RecordRow> read_record(const CodeLayout& layout, std::span<const std::uint8_t> row,
                              RecordHeader& want, std::uint16_t* codes, RecordScratch& scratch);

}  // namespace cqkv
