// The contents of KvBuffer; the vtable that ggml calls is in buffer_type.cpp.
#include "device/kv_buffer.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include <ggml-impl.h>

#include "core/exceptions.h"
#include "device/refusal.h"
#include "graph/sources.h"

namespace cqkv::device {
namespace {

constexpr std::size_t kAlignment = 64;

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
  CacheOptions options;
  options.n_streams = static_cast<std::size_t>(tensor->ne[2]);
  options.cells_per_stream = static_cast<std::size_t>(tensor->ne[1]);
  options.pool = library.pool_of(book, options.n_streams, options.cells_per_stream);
  return KvCache::tensor_size(options, codebook);
}

CacheOptions KvBuffer::options_for(const ggml_tensor* tensor, const LoadedCodebook& book) const {
  CacheOptions options;
  options.n_streams = static_cast<std::size_t>(tensor->ne[2]);
  options.cells_per_stream = static_cast<std::size_t>(tensor->ne[1]);
  options.window = library_->window_of(book);
  options.pool = library_->pool_of(book, options.n_streams, options.cells_per_stream);
  options.byte_tables = library_->uses_byte_tables();
  return options;
}

// All caches of a buffer belong to one set of cells.
Status KvBuffer::make_cache(const ggml_tensor* tensor, const LoadedCodebook& book) {
  const CacheOptions options = options_for(tensor, book);
  if (cache_ == nullptr) {
    cache_ = std::make_unique<KvCache>(options);
    return {};
  }
  const CacheOptions& first = cache_->options();
  if (options.n_streams != first.n_streams || options.cells_per_stream != first.cells_per_stream ||
      options.window != first.window) {
    return unsupported(std::string(tensor->name) + ": got " + std::to_string(options.n_streams) +
                       " x " + std::to_string(options.cells_per_stream) + " cells, want the " +
                       std::to_string(first.n_streams) + " x " +
                       std::to_string(first.cells_per_stream) +
                       " of the other caches in its buffer; run this model without a codebook");
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
  CQKV_RETURN_IF_ERROR(make_cache(tensor, *book));
  auto coded = std::make_unique<CodedTensor>();
  coded->name = *parse_cache_name(tensor->name);
  coded->book = book;
  coded->codebook = codebook;
  coded->n_cells = cache_->options().n_cells();
  coded->row_bytes = tensor->nb[1];
  const Status added = cache_->add({.kind = coded->name.kind,
                                    .layer = coded->name.layer,
                                    .codebook = codebook,
                                    .identity = book->identity,
                                    .row_bytes = coded->row_bytes,
                                    .memory = static_cast<std::uint8_t*>(tensor->data)});
  if (!added.ok()) {
    return {added.code(), "codebook " + book->codebook.origin.name + ": " + added.message()};
  }
  tensors_[tensor->data] = std::move(coded);
  return {};
}

bool KvBuffer::would_code(const ggml_tensor* tensor) const {
  return codebook_for(*library_, tensor, nullptr) != nullptr;
}

CodedTensor* KvBuffer::coded(const ggml_tensor* tensor) {
  const auto found = tensors_.find(root_of(tensor)->data);
  return found == tensors_.end() ? nullptr : found->second.get();
}

void KvBuffer::clear(std::uint8_t value) {
  std::memset(memory_, value, size_);
  if (cache_ != nullptr) {
    cache_->clear();
  }
}

void KvBuffer::settle() {
  if (cache_ == nullptr || !cache_->in_step()) {
    return;
  }
  const Status status = cache_->commit();
  if (!status.ok()) {
    report_error(status.message());
  }
  warn_if_evicting();
}

void KvBuffer::warn_if_evicting() {
  if (cache_->window().n_evicted_in_use() > 0 && !warned_of_eviction_) {
    warned_of_eviction_ = true;
    GGML_LOG_WARN(
        "cqkv: the exact window has room for %zu rows, and more sequences than it was made for "
        "use it: their windows become shorter; set CQKV_SEQUENCES to their number\n",
        cache_->window().n_slots());
  }
}

Status KvBuffer::read_rows(const CodedTensor& tensor, std::size_t first,
                           std::span<std::uint8_t> rows) {
  settle();
  return cache_->read_rows(tensor.name.kind, tensor.name.layer, first, rows);
}

void KvBuffer::write_rows(const CodedTensor& tensor, std::size_t first,
                          std::span<const std::uint8_t> rows) {
  settle();
  const Status status = cache_->write_rows(tensor.name.kind, tensor.name.layer, first, rows);
  if (!status.ok() && !reported_bad_row_) {
    reported_bad_row_ = true;
    // Without memory for the text there is none; the cells are invalid all the same.
    (void)without_exceptions("reporting",
                             [&] { report_error("restoring a saved state: " + status.message()); });
  }
}

void KvBuffer::copy_rows(const CodedTensor& tensor, std::size_t from, std::size_t to,
                         std::size_t n) {
  settle();
  const Status status = cache_->copy(tensor.name.kind, tensor.name.layer, from, to, n);
  if (!status.ok()) {
    report_error(status.message());
  }
}

}  // namespace cqkv::device
