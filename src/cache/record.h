// Records: one cell of one coded tensor as bytes, in the place of the 16-bit row
// that the engine saves and restores. A record carries what is needed to refuse
// it: the codebook's identity, layer, kind and position.
//
// Little-endian layout, `kRecordHeaderBytes` and then the codes, bit-packed:
//
//   0  u16  tag: an f16 NaN, so that an engine reading the row as data cannot
//           mistake it for numbers
//   2  u8   version of this layout (2)
//   3  u8   0 key, 1 value
//   4  i32  position
//   8  u64  codebook identity
//   16 u16  layer
//   18 u16  number of codes
//   20 u8   bit 0: an exact row follows the codes; bit 1: the token is a sink
//   21      3 bytes reserved, 0
//   24      codes: code i in bits [i b, (i + 1) b), lowest bit first
//           then, if it has one, the exact row (exact_row.h), at the next byte; then zeros
//
// A row of zeros is an empty cell. See docs/architecture.md, "Records".
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "cqkv/status.h"

#include "cache/code_blocks.h"
#include "cache/exact_row.h"

namespace cqkv {

inline constexpr std::uint16_t kRecordTag = 0x7EC9;
inline constexpr std::uint8_t kRecordVersion = 2;
inline constexpr std::size_t kRecordHeaderBytes = 24;

struct RecordHeader {
  KvKind kind = KvKind::kKey;
  int layer = 0;
  std::uint64_t identity = 0;
  std::int32_t position = 0;
  bool sink = false;
};

/// Bytes of a record of this layout without an exact row.
std::size_t record_bytes(const CodeLayout& layout);

/// Whether a row of `row_bytes` has room for the exact row of n_channels too; rates of 7
/// bits a channel and more do not, and lose their window when saved.
bool record_holds_exact_row(const CodeLayout& layout, std::size_t row_bytes);

/// Writes a record; the rest of `row` becomes zero. `row` holds at least record_bytes, and
/// `exact`, the exact row or nothing, besides.
void write_record(const CodeLayout& layout, const RecordHeader& header, const std::uint16_t* codes,
                  std::span<const std::uint8_t> exact, std::span<std::uint8_t> row);

/// What a row is.
enum class RowContent { kEmpty, kRecord };

/// A record as read.
struct RecordRow {
  RowContent content = RowContent::kEmpty;
  std::span<const std::uint8_t> exact;  ///< The exact row, inside the row read, or nothing.
};

/// Reads a row. kEmpty if all its bytes are zero; otherwise `want` says which kind,
/// layer and identity are expected and gets position and sink, and `codes` [n_codes] the codes.
///
/// @return kCorrupt if it is no record of this version or contradicts the layout,
///   kMismatch (naming both identities) if it belongs to another codebook, layer or
///   kind. Outputs are then undefined.
Result<RecordRow> read_record(const CodeLayout& layout, std::span<const std::uint8_t> row,
                              RecordHeader& want, std::uint16_t* codes);

}  // namespace cqkv
