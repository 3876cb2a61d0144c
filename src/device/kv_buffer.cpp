// The contents of KvBuffer; the vtable that ggml calls is in buffer_type.cpp.
#include "device/kv_buffer.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "device/refusal.h"

namespace cqkv::device {
namespace {

constexpr std::size_t kAlignment = 64;

std::string mib(std::size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f MiB", static_cast<double>(bytes) / 1024.0 / 1024.0);
  return text;
}

}  // namespace

std::unique_ptr<KvBuffer> KvBuffer::create(std::size_t size,
                                           std::shared_ptr<const CodebookLibrary> library) {
  std::unique_ptr<KvBuffer> buffer(new (std::nothrow) KvBuffer());
  if (buffer == nullptr) {
    return nullptr;
  }
  if (size > 0) {
    const std::size_t padded = (size + kAlignment - 1) / kAlignment * kAlignment;
    buffer->memory_ = static_cast<std::uint8_t*>(std::aligned_alloc(kAlignment, padded));
    if (buffer->memory_ == nullptr) {
      return nullptr;
    }
  }
  buffer->size_ = size;
  buffer->library_ = std::move(library);
  return buffer;
}

KvBuffer::~KvBuffer() {
  std::free(memory_);
}

const TensorCodebook* codebook_for(const CodebookLibrary& library, const ggml_tensor* tensor,
                                   const LoadedCodebook** book) {
  const auto name = parse_cache_name(tensor->name);
  if (!name || tensor->view_src != nullptr) {
    return nullptr;
  }
  const LoadedCodebook* found = library.match(*name, tensor->ne[0]);
  if (found == nullptr) {
    return nullptr;
  }
  if (book != nullptr) {
    *book = found;
  }
  return found->codebook.layers[static_cast<std::size_t>(name->layer)].get(name->kind);
}

Status KvBuffer::add(ggml_tensor* tensor) {
  if (tensor->view_src != nullptr || !is_cache_like(tensor->name)) {
    return {};
  }
  has_cache_ = true;
  const LoadedCodebook* book = nullptr;
  const TensorCodebook* codebook = codebook_for(*library_, tensor, &book);
  if (codebook == nullptr) {
    return {};
  }
  if (tensor->type != GGML_TYPE_F16) {
    return invalid_argument(std::string("cache type: got ") + ggml_type_name(tensor->type) +
                            ", want f16: the codebook replaces the cache type; leave out "
                            "--cache-type-k and --cache-type-v");
  }
  auto coded = std::make_unique<CodedTensor>();
  coded->name = *parse_cache_name(tensor->name);
  coded->book = book;
  coded->codebook = codebook;
  coded->layout = {codebook->spec(), codebook->n_kv_heads(), codebook->head_dim()};
  coded->codes = static_cast<std::uint8_t*>(tensor->data);
  coded->n_cells = static_cast<std::size_t>(tensor->ne[1] * tensor->ne[2]);
  coded->row_bytes = tensor->nb[1];
  if (record_bytes(coded->layout) > coded->row_bytes) {
    return unsupported("codebook " + book->codebook.origin.name + ": a saved row of " +
                       std::to_string(record_bytes(coded->layout)) + " bytes does not fit into " +
                       std::to_string(coded->row_bytes) + "; use fewer bits per channel");
  }
  cells_.grow(coded->n_cells);
  if (state_owner_ == nullptr) {
    state_owner_ = coded.get();
  }
  tensors_[tensor->data] = std::move(coded);
  return {};
}

CodedTensor* KvBuffer::coded(const ggml_tensor* tensor) {
  const auto found = tensors_.find(root_of(tensor)->data);
  return found == tensors_.end() ? nullptr : found->second.get();
}

RopeTable& KvBuffer::rope_table(const RopeParams& params) {
  for (const auto& table : rope_tables_) {
    if (table->params() == params) {
      return *table;
    }
  }
  rope_tables_.push_back(std::make_unique<RopeTable>(params));
  return *rope_tables_.back();
}

void KvBuffer::clear(std::uint8_t value) {
  if (memory_ != nullptr) {
    std::memset(memory_, value, size_);
  }
  cells_.clear();
}

void KvBuffer::read_rows(const CodedTensor& tensor, std::size_t first,
                         std::span<std::uint8_t> rows) const {
  std::vector<std::uint16_t> codes(tensor.layout.n_codes());
  RecordHeader header{.kind = tensor.name.kind,
                      .layer = tensor.name.layer,
                      .identity = tensor.book->identity,
                      .position = 0};
  for (std::size_t i = 0; i * tensor.row_bytes < rows.size(); i++) {
    const auto row = rows.subspan(i * tensor.row_bytes, tensor.row_bytes);
    const std::size_t cell = first + i;
    if (!cells_.holds_token(cell)) {
      std::fill(row.begin(), row.end(), std::uint8_t{0});
      continue;
    }
    get_codes(tensor.layout, tensor.codes, cell, codes.data());
    header.position = cells_.at(cell);
    write_record(tensor.layout, header, codes.data(), row);
  }
}

void KvBuffer::write_rows(const CodedTensor& tensor, std::size_t first,
                          std::span<const std::uint8_t> rows) {
  std::vector<std::uint16_t> codes(tensor.layout.n_codes());
  for (std::size_t i = 0; i * tensor.row_bytes < rows.size(); i++) {
    restore_row(tensor, first + i, rows.subspan(i * tensor.row_bytes, tensor.row_bytes), codes);
  }
}

// The first coded tensor of the buffer decides what the cell is; a later one can only
// find fault with it. llama.cpp restores layer by layer, keys first.
void KvBuffer::restore_row(const CodedTensor& tensor, std::size_t cell,
                           std::span<const std::uint8_t> row, std::vector<std::uint16_t>& codes) {
  RecordHeader want{.kind = tensor.name.kind,
                    .layer = tensor.name.layer,
                    .identity = tensor.book->identity,
                    .position = 0};
  const auto content = read_record(tensor.layout, row, want, codes.data());
  const bool owner = &tensor == state_owner_;
  if (!content.ok()) {
    if (!reported_bad_row_) {
      reported_bad_row_ = true;
      report_error("restoring a saved state: " + content.status().message());
    }
    cells_.set(cell, CellTable::kInvalid);
    return;
  }
  if (*content == RowContent::kEmpty) {
    if (owner) {
      cells_.set(cell, CellTable::kEmpty);
    } else if (cells_.holds_token(cell)) {
      cells_.set(cell, CellTable::kInvalid);
    }
    return;
  }
  put_codes(tensor.layout, tensor.codes, cell, codes.data());
  if (owner) {
    cells_.set(cell, want.position);
  } else if (cells_.holds_token(cell) && cells_.at(cell) != want.position) {
    cells_.set(cell, CellTable::kInvalid);
  }
}

void KvBuffer::copy_rows(const CodedTensor& tensor, std::size_t from, std::size_t to,
                         std::size_t n) {
  const bool whole_blocks =
      from % kBlockCells == 0 && to % kBlockCells == 0 && n % kBlockCells == 0;
  if (whole_blocks) {
    const std::size_t block = tensor.layout.block_bytes();
    std::memmove(tensor.codes + to / kBlockCells * block, tensor.codes + from / kBlockCells * block,
                 n / kBlockCells * block);
  } else {
    std::vector<std::uint16_t> codes(tensor.layout.n_codes());
    for (std::size_t i = 0; i < n; i++) {
      get_codes(tensor.layout, tensor.codes, from + i, codes.data());
      put_codes(tensor.layout, tensor.codes, to + i, codes.data());
    }
  }
  cells_.copy(from, to, n);
}

std::string KvBuffer::take_summary() {
  if (summarised_ || !has_cache_ || library_->empty()) {
    return "";
  }
  summarised_ = true;
  return summary();
}

std::string KvBuffer::summary() const {
  if (tensors_.empty()) {
    return "no codebook in CQKV_CODEBOOK fits this model's cache; it is kept as 16-bit rows";
  }
  std::size_t bytes = 0;
  std::size_t nominal = 0;
  std::size_t n_cells = 0;
  for (const auto& [data, tensor] : tensors_) {
    bytes += tensor->layout.tensor_bytes(tensor->n_cells);
    nominal += tensor->n_cells * tensor->row_bytes;
    n_cells = std::max(n_cells, tensor->n_cells);
  }
  const auto bits = static_cast<double>(bytes) * 16.0 / static_cast<double>(nominal);
  char text[64];
  std::snprintf(text, sizeof(text), "%.2f bits per channel", bits);
  return "codebook " + state_owner_->book->codebook.origin.name + ": " +
         std::to_string(tensors_.size()) + " tensors of " + std::to_string(n_cells) +
         " cells coded at " + text + ", codes " + mib(bytes) + " (16-bit: " + mib(nominal) +
         "), positions " + mib(cells_.bytes());
}

}  // namespace cqkv::device
