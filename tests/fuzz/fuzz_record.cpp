// Fuzz target: any bytes as a saved row. The first four bytes choose the codec and the
// shape; identity, layer and kind are taken from the row itself, so that the checks behind
// them are reached. What is accepted must be a record: written again, it reads the same.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cache/record.h"

namespace {

void require(bool holds) {
  if (!holds) {
    std::abort();
  }
}

cqkv::RecordHeader expected_of(const std::uint8_t* row, std::size_t size, bool honest) {
  cqkv::RecordHeader want;
  if (honest && size >= cqkv::kRecordHeaderBytes) {
    want.kind = row[3] == 0 ? cqkv::KvKind::kKey : cqkv::KvKind::kValue;
    std::memcpy(&want.identity, row + 8, sizeof(want.identity));
    want.layer = row[16] + 256 * row[17];
  }
  return want;
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
  const std::vector<std::uint8_t> row(data + 4, data + size);
  cqkv::RecordHeader header = expected_of(row.data(), row.size(), data[2] < 240);
  std::vector<std::uint16_t> codes(static_cast<std::size_t>(layout.n_codes()));
  const auto record = cqkv::read_record(layout, row, header, codes.data());
  if (!record.ok() || record->content == cqkv::RowContent::kEmpty) {
    return 0;
  }
  require(header.position >= 0);
  for (const std::uint16_t code : codes) {
    require(code < layout.spec.n_centroids());
  }
  std::vector<std::uint8_t> again(row.size());
  cqkv::write_record(layout, header, codes.data(), record->exact, again);
  cqkv::RecordHeader header_again = header;
  std::vector<std::uint16_t> codes_again(codes.size());
  const auto second = cqkv::read_record(layout, again, header_again, codes_again.data());
  require(second.ok() && codes_again == codes && header_again.position == header.position &&
          header_again.sink == header.sink && second->exact.size() == record->exact.size());
  return 0;
}
