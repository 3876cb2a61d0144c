// Fuzz target: any bytes as a saved row, and a record made of any bytes. The first four bytes
// choose the codec and the shape. A record must be finite floats and read as it was written, and
// one flipped bit must be refused.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "cache/record.h"

namespace {

void require(bool holds) {
  if (!holds) {
    std::abort();
  }
}

// Any bytes as a row: mostly refused by the checksum.
void read_given(const cqkv::CodeLayout& layout, const std::vector<std::uint8_t>& row) {
  cqkv::RecordHeader header;
  cqkv::RecordScratch scratch;
  std::vector<std::uint16_t> codes(static_cast<std::size_t>(layout.n_codes()));
  const auto record = cqkv::read_record(layout, row, header, codes.data(), scratch);
  require(!record.ok() || record->content == cqkv::RowContent::kEmpty || header.position >= 0);
}

// Numbers off the input; zeros at its end.
class Numbers {
 public:
  explicit Numbers(const std::vector<std::uint8_t>& bytes) : bytes_(&bytes) {}

  std::uint8_t next() { return next_ < bytes_->size() ? (*bytes_)[next_++] : std::uint8_t{0}; }

 private:
  const std::vector<std::uint8_t>* bytes_;
  std::size_t next_ = 0;
};

// A record of what the bytes say is finite floats, and reads as it was written, or its exact row's
// scales are refused.
void read_made(const cqkv::CodeLayout& layout, const std::vector<std::uint8_t>& bytes, bool key) {
  Numbers numbers(bytes);
  cqkv::RecordHeader header;
  header.kind = key ? cqkv::KvKind::kKey : cqkv::KvKind::kValue;
  header.layer = numbers.next();
  header.identity = numbers.next() * 0x0101010101010101ULL;
  header.position = numbers.next() << 23U;
  header.window = {
      .sink = numbers.next() > 127, .needed = numbers.next() > 127, .mark_age = numbers.next()};
  std::vector<std::uint16_t> codes(static_cast<std::size_t>(layout.n_codes()));
  for (auto& code : codes) {
    code = static_cast<std::uint16_t>((numbers.next() | numbers.next() << 8U) %
                                      layout.spec.n_centroids());
  }
  std::vector<std::uint8_t> row(cqkv::record_row_bytes(layout) + 2U * (numbers.next() % 8U));
  std::vector<std::uint8_t> exact;
  if (numbers.next() > 127) {
    exact.resize(cqkv::ExactRowLayout{layout.n_channels()}.row_bytes());
    row.resize(row.size() + 2 * exact.size() + 2);
    for (auto& byte : exact) {
      byte = numbers.next();
    }
  }
  cqkv::RecordScratch scratch;
  cqkv::write_record(layout, header, codes.data(), exact, row, scratch);
  for (std::size_t i = 1; i < row.size(); i += 2) {
    require((row[i] & 0x7CU) != 0x7CU);
  }
  cqkv::RecordHeader again = header;
  std::vector<std::uint16_t> codes_again(codes.size());
  const auto record = cqkv::read_record(layout, row, again, codes_again.data(), scratch);
  require(record.ok() || !exact.empty());
  require(!record.ok() ||
          (codes_again == codes && again.position == header.position &&
           std::equal(exact.begin(), exact.end(), record->exact.begin(), record->exact.end())));
  row[numbers.next() % row.size()] ^= static_cast<std::uint8_t>(1U << numbers.next() % 8U);
  require(!cqkv::read_record(layout, row, again, codes_again.data(), scratch).ok());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 4) {
    return 0;
  }
  cqkv::CodeLayout layout;
  layout.spec = {1 << data[0] % 5, 1 + data[1] % cqkv::kMaxCodeBits};
  layout.n_kv_heads = 1 + data[2] % 3;
  layout.head_dim = layout.spec.group_dim * (1 + data[3] % 8);
  const std::vector<std::uint8_t> given(data + 4, data + size);
  read_given(layout, given);
  read_made(layout, given, data[2] >= 240);
  return 0;
}
