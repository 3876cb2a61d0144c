// KvCache: cells as records, out and in, and copies of cells.
#include <algorithm>
#include <cstring>

#include "cache/kv_cache.h"

namespace cqkv {

RecordHeader KvCache::header_of(const Tensor& tensor) {
  return {.kind = tensor.given.kind,
          .layer = tensor.given.layer,
          .identity = tensor.given.identity,
          .position = 0};
}

// ---------------------------------------------------------------- out

void KvCache::save(const Tensor& tensor, std::size_t first, std::span<std::uint8_t> rows) const {
  const std::size_t row_bytes = tensor.given.row_bytes;
  const bool with_exact =
      tensor.pool != nullptr && record_holds_exact_row(tensor.codec->layout(), row_bytes);
  std::vector<std::uint16_t> codes(tensor.codec->layout().n_codes());
  RecordScratch scratch;
  RecordHeader header = header_of(tensor);
  for (std::size_t i = 0; (i + 1) * row_bytes <= rows.size(); i++) {
    const auto row = rows.subspan(i * row_bytes, row_bytes);
    const std::size_t cell = first + i;
    if (!cells_.holds_token(cell)) {
      std::fill(row.begin(), row.end(), std::uint8_t{0});
      continue;
    }
    get_codes(tensor.codec->layout(), tensor.codes, cell, codes.data());
    header.position = cells_.at(cell);
    std::span<const std::uint8_t> exact;
    header.window = {};
    if (with_exact && window_.row(cell) != ExactWindow::kNone) {
      const std::size_t bytes = tensor.exact.row_bytes();
      exact = {tensor.pool + static_cast<std::size_t>(window_.row(cell)) * bytes, bytes};
      header.window = window_.saved(cell);
    }
    write_record(tensor.codec->layout(), header, codes.data(), exact, row, scratch);
  }
}

// ---------------------------------------------------------------- in

Status KvCache::restore(const Tensor& tensor, std::size_t first,
                        std::span<const std::uint8_t> rows) {
  const std::size_t row_bytes = tensor.given.row_bytes;
  std::vector<std::uint16_t> codes(tensor.codec->layout().n_codes());
  RecordScratch scratch;
  Status first_error;
  for (std::size_t i = 0; (i + 1) * row_bytes <= rows.size(); i++) {
    Status status =
        restore_row(tensor, first + i, rows.subspan(i * row_bytes, row_bytes), codes, scratch);
    if (first_error.ok()) {
      first_error = std::move(status);
    }
  }
  return first_error;
}

// The first tensor of the cache decides what the cell is; a later one can only find fault with it.
Status KvCache::restore_row(const Tensor& tensor, std::size_t cell,
                            std::span<const std::uint8_t> row, std::vector<std::uint16_t>& codes,
                            RecordScratch& scratch) {
  RecordHeader want = header_of(tensor);
  const auto record = read_record(tensor.codec->layout(), row, want, codes.data(), scratch);
  const bool decides = decides_cells(tensor);
  if (decides && window_.enabled()) {
    window_.drop(cell);
  }
  if (!record.ok()) {
    cells_.set(cell, CellTable::kInvalid);
    return record.status();
  }
  if (record->content == RowContent::kEmpty) {
    if (decides) {
      cells_.set(cell, CellTable::kEmpty);
    } else if (cells_.holds_token(cell)) {
      cells_.set(cell, CellTable::kInvalid);
    }
    return {};
  }
  put_codes(tensor.codec->layout(), tensor.codes, cell, codes.data());
  if (decides) {
    cells_.set(cell, want.position);
  } else if (cells_.holds_token(cell) && cells_.at(cell) != want.position) {
    cells_.set(cell, CellTable::kInvalid);
  }
  restore_exact_row(tensor, cell, want, record->exact);
  return {};
}

// The first tensor's record decides whether the cell is exact; a cell whose other records then
// lack the row is coded.
void KvCache::restore_exact_row(const Tensor& tensor, std::size_t cell, const RecordHeader& header,
                                std::span<const std::uint8_t> exact) {
  if (!window_.enabled()) {
    return;
  }
  if (decides_cells(tensor) && !exact.empty()) {
    window_.restore(cell, header.window, header.position);
  }
  if (exact.empty()) {
    window_.drop(cell);
  } else if (window_.row(cell) != ExactWindow::kNone) {
    std::memcpy(tensor.pool + static_cast<std::size_t>(window_.row(cell)) * exact.size(),
                exact.data(), exact.size());
  }
}

void KvCache::invalidate_cells(std::size_t first, std::size_t n) {
  for (std::size_t cell = first; cell < first + n; cell++) {
    cells_.set(cell, CellTable::kInvalid);
  }
}

// ---------------------------------------------------------------- copies

// The first tensor copies what cells are, the others follow it.
void KvCache::copy_cells(const Tensor& tensor, std::size_t from, std::size_t to, std::size_t n) {
  copy_codes(tensor, from, to, n);
  if (decides_cells(tensor)) {
    cells_.copy(from, to, n);
    for (std::size_t i = 0; window_.enabled() && i < n; i++) {
      window_.drop(to + i);
      if (window_.row(from + i) != ExactWindow::kNone) {
        window_.restore(to + i, window_.saved(from + i), cells_.at(to + i));
      }
    }
  }
  const std::size_t bytes = tensor.exact.row_bytes();
  for (std::size_t i = 0; window_.enabled() && i < n; i++) {
    const std::int32_t source = window_.row(from + i);
    const std::int32_t target = window_.row(to + i);
    if (source != ExactWindow::kNone && target != ExactWindow::kNone) {
      std::memcpy(tensor.pool + static_cast<std::size_t>(target) * bytes,
                  tensor.pool + static_cast<std::size_t>(source) * bytes, bytes);
    }
  }
}

void KvCache::copy_codes(const Tensor& tensor, std::size_t from, std::size_t to, std::size_t n) {
  const bool whole_blocks =
      from % kBlockCells == 0 && to % kBlockCells == 0 && n % kBlockCells == 0;
  if (whole_blocks) {
    const std::size_t block = tensor.codec->layout().block_bytes();
    std::memmove(tensor.codes + to / kBlockCells * block, tensor.codes + from / kBlockCells * block,
                 n / kBlockCells * block);
    return;
  }
  std::vector<std::uint16_t> codes(tensor.codec->layout().n_codes());
  for (std::size_t i = 0; i < n; i++) {
    get_codes(tensor.codec->layout(), tensor.codes, from + i, codes.data());
    put_codes(tensor.codec->layout(), tensor.codes, to + i, codes.data());
  }
}

}  // namespace cqkv
