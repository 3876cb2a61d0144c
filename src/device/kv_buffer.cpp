// The contents of KvBuffer; the vtable that ggml calls is in buffer_type.cpp.
#include "device/kv_buffer.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include <ggml-impl.h>

#include "device/refusal.h"
#include "graph/sources.h"
#include "kernels/dispatch.h"

namespace cqkv::device {
namespace {

constexpr std::size_t kAlignment = 64;

RecordHeader header_of(const CodedTensor& tensor) {
  return {.kind = tensor.name.kind,
          .layer = tensor.name.layer,
          .identity = tensor.book->identity,
          .position = 0};
}

}  // namespace

std::unique_ptr<KvBuffer> KvBuffer::create(std::size_t size,
                                           std::shared_ptr<const CodebookLibrary> library) {
  std::unique_ptr<KvBuffer> buffer(new (std::nothrow) KvBuffer());
  if (buffer == nullptr) {
    return nullptr;
  }
  const std::size_t padded = (size + kAlignment - 1) / kAlignment * kAlignment;
  buffer->memory_ = static_cast<std::uint8_t*>(std::aligned_alloc(kAlignment, padded));
  if (buffer->memory_ == nullptr) {
    return nullptr;
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

CodedTensorSize coded_size(const CodebookLibrary& library, const ggml_tensor* tensor,
                           const LoadedCodebook& book, const TensorCodebook& codebook) {
  const auto cells_per_stream = static_cast<std::size_t>(tensor->ne[1]);
  const auto n_streams = static_cast<std::size_t>(tensor->ne[2]);
  const CodeLayout layout(codebook.spec());
  const std::size_t n_rows = n_streams * library.pool_of(book, n_streams, cells_per_stream).n_rows;
  return CodedTensorSize::of(layout, n_streams * cells_per_stream, n_rows);
}

// All caches of a buffer belong to one set of cells.
Status KvBuffer::configure_window(const ggml_tensor* tensor, const LoadedCodebook& book) {
  const auto cells_per_stream = static_cast<std::size_t>(tensor->ne[1]);
  const auto n_streams = static_cast<std::size_t>(tensor->ne[2]);
  const WindowSpec spec = library_->window_of(book);
  if (state_owner_ == nullptr) {
    window_.configure(spec, n_streams, cells_per_stream,
                      library_->pool_of(book, n_streams, cells_per_stream));
    return {};
  }
  const bool same = spec == window_.spec() && cells_per_stream == window_.cells_per_stream() &&
                    n_streams * cells_per_stream == window_.n_cells();
  if (window_.enabled() && !same) {
    return unsupported(std::string(tensor->name) + ": got " + std::to_string(n_streams) + " x " +
                       std::to_string(cells_per_stream) + " cells, want the " +
                       std::to_string(window_.n_cells() / window_.cells_per_stream()) + " x " +
                       std::to_string(window_.cells_per_stream()) +
                       " of the other caches in its buffer; run with --window 0 --sinks 0");
  }
  return {};
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
  coded->layout = CodeLayout(codebook->spec());
  coded->codes = static_cast<std::uint8_t*>(tensor->data);
  coded->n_cells = static_cast<std::size_t>(tensor->ne[1] * tensor->ne[2]);
  coded->row_bytes = tensor->nb[1];
  if (record_row_bytes(coded->layout) > coded->row_bytes) {
    return unsupported("codebook " + book->codebook.origin.name + ": a saved row of " +
                       std::to_string(record_row_bytes(coded->layout)) +
                       " bytes does not fit into " + std::to_string(coded->row_bytes) +
                       "; use fewer bits per channel");
  }
  CQKV_RETURN_IF_ERROR(configure_window(tensor, *book));
  const CodedTensorSize size = coded_size(*library_, tensor, *book, *codebook);
  coded->exact = {codebook->n_channels()};
  coded->pool = size.pool_bytes == 0 ? nullptr : coded->codes + size.pool_offset();
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

const ByteTables* KvBuffer::byte_tables(CodedTensor& tensor) {
  const kernels::KernelTable& kernel = kernels::active();
  const int code_bits = tensor.codebook->spec().code_bits();
  if (!library_->uses_byte_tables() || !ByteTables::usable(code_bits, kernel)) {
    return nullptr;
  }
  const RopeParams* rope = tensor.rotated ? &tensor.rope : nullptr;
  if (tensor.tables == nullptr ||
      tensor.tables->order() != ByteTables::order_for(code_bits, kernel) ||
      !tensor.tables->pairs().fit(rope)) {
    tensor.tables = std::make_unique<const ByteTables>(
        ByteTables::of(*tensor.codebook, tensor.name.kind, rope, kernel));
  }
  return tensor.tables->precise() ? tensor.tables.get() : nullptr;
}

void KvBuffer::clear(std::uint8_t value) {
  std::memset(memory_, value, size_);
  cells_.clear();
  window_.clear();
}

// ---- Exact rows ------------------------------------------------------------

void KvBuffer::begin_tokens(std::span<const std::int32_t> positions,
                            std::span<const std::size_t> cells) {
  settle();
  reported_bad_row_ = false;
  for (std::size_t i = 0; i < cells.size(); i++) {
    cells_.set(cells[i], positions[i]);
  }
  if (window_.enabled()) {
    window_.begin(positions, cells);
  }
}

bool KvBuffer::knows_positions(const CodedTensor& tensor) const {
  return position_owner_ != nullptr && tensor.name.layer >= position_owner_->name.layer;
}

bool KvBuffer::uses_window(const CodedTensor& tensor) const {
  return window_.enabled() && knows_positions(tensor);
}

BatchRows& KvBuffer::batch_rows(const CodedTensor& tensor) {
  return tensor.name.kind == KvKind::kKey ? key_rows_ : value_rows_;
}

std::uint8_t* KvBuffer::begin_exact_rows(CodedTensor& tensor, std::size_t n_tokens) {
  BatchRows& rows = batch_rows(tensor);
  rows.owner = nullptr;  // until there is memory
  rows.bytes.resize(std::max(rows.bytes.size(), n_tokens * tensor.exact.row_bytes()));
  rows.owner = &tensor;
  tensor.stored_epoch = window_.epoch();
  return rows.bytes.data();
}

const std::uint8_t* KvBuffer::exact_rows(const CodedTensor& tensor) {
  const BatchRows& rows = batch_rows(tensor);
  return rows.owner == &tensor ? rows.bytes.data() : nullptr;
}

void KvBuffer::move_exact_rows(CodedTensor& tensor) {
  const std::uint8_t* rows = exact_rows(tensor);
  if (rows == nullptr || tensor.stored_epoch != window_.epoch() ||
      tensor.moved_epoch == window_.epoch()) {
    return;
  }
  const std::size_t bytes = tensor.exact.row_bytes();
  for (const ExactWindow::Move& move : window_.moves()) {
    std::memcpy(tensor.pool + move.slot * bytes, rows + move.token * bytes, bytes);
  }
  tensor.moved_epoch = window_.epoch();
}

void KvBuffer::settle() {
  if (!window_.enabled()) {
    return;
  }
  bool moved = true;
  for (const auto& [data, tensor] : tensors_) {
    moved = moved &&
            (tensor->stored_epoch != window_.epoch() || tensor->moved_epoch == window_.epoch());
  }
  window_.commit(moved);
  warn_if_evicting();
}

void KvBuffer::warn_if_evicting() {
  if (window_.n_evicted_in_use() > 0 && !warned_of_eviction_) {
    warned_of_eviction_ = true;
    GGML_LOG_WARN(
        "cqkv: the exact window has room for %zu rows, and more sequences than it was made for "
        "use it: their windows become shorter; set CQKV_SEQUENCES to their number\n",
        window_.n_slots());
  }
}

// ---- Saved rows ------------------------------------------------------------

void KvBuffer::read_rows(const CodedTensor& tensor, std::size_t first,
                         std::span<std::uint8_t> rows) {
  settle();
  const bool with_exact =
      tensor.pool != nullptr && record_holds_exact_row(tensor.layout, tensor.row_bytes);
  std::vector<std::uint16_t> codes(tensor.layout.n_codes());
  RecordScratch scratch;
  RecordHeader header = header_of(tensor);
  for (std::size_t i = 0; i * tensor.row_bytes < rows.size(); i++) {
    const auto row = rows.subspan(i * tensor.row_bytes, tensor.row_bytes);
    const std::size_t cell = first + i;
    if (!cells_.holds_token(cell)) {
      std::fill(row.begin(), row.end(), std::uint8_t{0});
      continue;
    }
    get_codes(tensor.layout, tensor.codes, cell, codes.data());
    header.position = cells_.at(cell);
    std::span<const std::uint8_t> exact;
    header.window = {};
    if (with_exact && window_.row(cell) != ExactWindow::kNone) {
      const std::size_t bytes = tensor.exact.row_bytes();
      exact = {tensor.pool + static_cast<std::size_t>(window_.row(cell)) * bytes, bytes};
      header.window = window_.saved(cell);
    }
    write_record(tensor.layout, header, codes.data(), exact, row, scratch);
  }
}

void KvBuffer::write_rows(const CodedTensor& tensor, std::size_t first,
                          std::span<const std::uint8_t> rows) {
  settle();
  std::vector<std::uint16_t> codes(tensor.layout.n_codes());
  RecordScratch scratch;
  for (std::size_t i = 0; i * tensor.row_bytes < rows.size(); i++) {
    restore_row(tensor, first + i, rows.subspan(i * tensor.row_bytes, tensor.row_bytes), codes,
                scratch);
  }
}

void KvBuffer::invalidate_rows(std::size_t first, std::size_t n) {
  settle();
  for (std::size_t cell = first; cell < first + n; cell++) {
    cells_.set(cell, CellTable::kInvalid);
  }
}

// The first coded tensor of the buffer decides what the cell is; a later one can only
// find fault with it. llama.cpp restores layer by layer, keys first.
void KvBuffer::restore_row(const CodedTensor& tensor, std::size_t cell,
                           std::span<const std::uint8_t> row, std::vector<std::uint16_t>& codes,
                           RecordScratch& scratch) {
  RecordHeader want = header_of(tensor);
  const auto record = read_record(tensor.layout, row, want, codes.data(), scratch);
  const bool owner = &tensor == state_owner_;
  if (owner && window_.enabled()) {
    window_.drop(cell);
  }
  if (!record.ok()) {
    if (!reported_bad_row_) {
      reported_bad_row_ = true;
      report_error("restoring a saved state: " + record.status().message());
    }
    cells_.set(cell, CellTable::kInvalid);
    return;
  }
  if (record->content == RowContent::kEmpty) {
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
  restore_exact_row(tensor, cell, want, record->exact);
}

// The owner's record decides whether the cell is exact; a cell whose other records then
// lack the row is coded.
void KvBuffer::restore_exact_row(const CodedTensor& tensor, std::size_t cell,
                                 const RecordHeader& header, std::span<const std::uint8_t> exact) {
  if (!window_.enabled()) {
    return;
  }
  if (&tensor == state_owner_ && !exact.empty()) {
    window_.restore(cell, header.window, header.position);
  }
  if (exact.empty()) {
    window_.drop(cell);
  } else if (window_.row(cell) != ExactWindow::kNone) {
    std::memcpy(tensor.pool + static_cast<std::size_t>(window_.row(cell)) * exact.size(),
                exact.data(), exact.size());
  }
}

// The first coded tensor copies the cells' state, the others follow it. llama.cpp copies
// all tensors of a stream, layer by layer, keys first.
void KvBuffer::copy_rows(const CodedTensor& tensor, std::size_t from, std::size_t to,
                         std::size_t n) {
  settle();
  copy_codes(tensor, from, to, n);
  if (&tensor == state_owner_) {
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

void KvBuffer::copy_codes(const CodedTensor& tensor, std::size_t from, std::size_t to,
                          std::size_t n) {
  const bool whole_blocks =
      from % kBlockCells == 0 && to % kBlockCells == 0 && n % kBlockCells == 0;
  if (whole_blocks) {
    const std::size_t block = tensor.layout.block_bytes();
    std::memmove(tensor.codes + to / kBlockCells * block, tensor.codes + from / kBlockCells * block,
                 n / kBlockCells * block);
    return;
  }
  std::vector<std::uint16_t> codes(tensor.layout.n_codes());
  for (std::size_t i = 0; i < n; i++) {
    get_codes(tensor.layout, tensor.codes, from + i, codes.data());
    put_codes(tensor.layout, tensor.codes, to + i, codes.data());
  }
}

KvBuffer::Contents KvBuffer::contents() const {
  Contents result;
  if (tensors_.empty()) {
    return result;
  }
  result.window = window_.spec();
  result.pool = window_.pool();
  result.table_bytes = extra_bytes();
  for (const auto& [data, tensor] : tensors_) {
    result.n_cells = std::max(result.n_cells, tensor->n_cells);
    result.code_bytes += tensor->layout.tensor_bytes(tensor->n_cells);
    result.nominal_bytes += tensor->n_cells * tensor->row_bytes;
    result.row_bytes += tensor->exact.row_bytes();
  }
  return result;
}

}  // namespace cqkv::device
