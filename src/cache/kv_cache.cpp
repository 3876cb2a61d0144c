// KvCache: its tensors and what they take, and the calls between steps. The step is in
// kv_cache_step.cpp, saved rows and copies in kv_cache_rows.cpp.
#include "cache/kv_cache.h"

#include <cstdlib>
#include <new>
#include <string>
#include <utility>

#include "core/exceptions.h"
#include "core/round_up.h"
#include "core/side_text.h"

namespace cqkv {
namespace {

constexpr std::size_t kAlignment = 64;

}  // namespace

KvCache::KvCache(const CacheOptions& options) : options_(options) {
}

KvCache::~KvCache() = default;

CodedTensorSize KvCache::tensor_size(const CacheOptions& options, const TensorCodebook& codebook) {
  return CodedTensorSize::of(CodeLayout(codebook.spec()), options.n_cells(),
                             options.n_streams * options.pool.n_rows);
}

Status KvCache::add(const CacheTensor& given) {
  if (has(given.kind, given.layer)) {
    return invalid_argument("cache: the " + side_text(given.kind, given.layer) +
                            " are added twice");
  }
  return without_exceptions("making a cache", [&]() -> Status {
    auto tensor = std::make_unique<Tensor>();
    tensor->given = given;
    tensor->codec = std::make_unique<const TensorCodec>(*given.codebook);
    const std::size_t record_bytes = record_row_bytes(tensor->codec->layout());
    if (record_bytes > given.row_bytes) {
      return unsupported("a saved row of " + std::to_string(record_bytes) +
                         " bytes does not fit into " + std::to_string(given.row_bytes) +
                         "; use fewer bits per channel");
    }
    tensor->exact = {given.codebook->n_channels()};
    const CodedTensorSize size = tensor_size(options_, *given.codebook);
    tensor->codes = given.memory;
    if (tensor->codes == nullptr) {
      const std::size_t padded = round_up(size.total(), kAlignment);
      tensor->own = {static_cast<std::uint8_t*>(std::aligned_alloc(kAlignment, padded)), std::free};
      tensor->codes = tensor->own.get();
    }
    if (tensor->codes == nullptr) {
      return {StatusCode::kResourceExhausted, "cache: no memory for the " +
                                                  std::to_string(size.total()) + " bytes of the " +
                                                  side_text(given.kind, given.layer)};
    }
    tensor->pool = size.pool_bytes == 0 ? nullptr : tensor->codes + size.pool_offset();
    if (tensors_.empty()) {
      window_.configure(options_.window, options_.n_streams, options_.cells_per_stream,
                        options_.pool);
      cells_.grow(options_.n_cells());
    }
    tensors_.push_back(std::move(tensor));
    return {};
  });
}

KvCache::Tensor* KvCache::find(KvKind kind, int layer) const {
  for (const auto& tensor : tensors_) {
    if (tensor->given.kind == kind && tensor->given.layer == layer) {
      return tensor.get();
    }
  }
  return nullptr;
}

Status KvCache::find_tensor(KvKind kind, int layer, Tensor*& tensor) const {
  tensor = find(kind, layer);
  return tensor != nullptr ? Status()
                           : invalid_argument("cache: it has no " + side_text(kind, layer));
}

Status KvCache::check_idle(const char* call) const {
  return in_step_ ? invalid_argument(std::string("cache: ") + call +
                                     " during a step; commit or abandon it first")
                  : Status();
}

Status KvCache::check_range(const char* call, std::size_t first, std::size_t n) const {
  return first <= cells_.size() && n <= cells_.size() - first
             ? Status()
             : invalid_argument(std::string("cache: ") + call + " of cells " +
                                std::to_string(first) + " to " + std::to_string(first + n) +
                                ", there are " + std::to_string(cells_.size()));
}

Status KvCache::check_cells(std::span<const std::size_t> cells) const {
  for (const std::size_t cell : cells) {
    CQKV_RETURN_IF_ERROR(check_range("storing", cell, 1));
  }
  return {};
}

// ---------------------------------------------------------------- between steps

// Keys are coded before their rotation: nothing but positions changes. Asks for no memory, since
// positions half shifted could not be mended.
Status KvCache::shift(std::size_t first, std::span<const std::int32_t> shifts) {
  CQKV_RETURN_IF_ERROR(check_idle("shift"));
  CQKV_RETURN_IF_ERROR(check_range("shift", first, shifts.size()));
  cells_.shift(first, shifts);
  return {};
}

Status KvCache::copy(KvKind kind, int layer, std::size_t from, std::size_t to, std::size_t n) {
  Tensor* tensor = nullptr;
  CQKV_RETURN_IF_ERROR(check_idle("copy"));
  CQKV_RETURN_IF_ERROR(check_range("copy", from, n));
  CQKV_RETURN_IF_ERROR(check_range("copy", to, n));
  CQKV_RETURN_IF_ERROR(find_tensor(kind, layer, tensor));
  Status status =
      without_exceptions("copying a sequence", [&] { copy_cells(*tensor, from, to, n); });
  if (!status.ok()) {
    invalidate_cells(to, n);
  }
  return status;
}

Status KvCache::read_rows(KvKind kind, int layer, std::size_t first, std::span<std::uint8_t> rows) {
  Tensor* tensor = nullptr;
  CQKV_RETURN_IF_ERROR(check_idle("read_rows"));
  CQKV_RETURN_IF_ERROR(find_tensor(kind, layer, tensor));
  CQKV_RETURN_IF_ERROR(check_range("read_rows", first, rows.size() / tensor->given.row_bytes));
  return without_exceptions("saving a state", [&] { save(*tensor, first, rows); });
}

Status KvCache::write_rows(KvKind kind, int layer, std::size_t first,
                           std::span<const std::uint8_t> rows) {
  Tensor* tensor = nullptr;
  CQKV_RETURN_IF_ERROR(check_idle("write_rows"));
  CQKV_RETURN_IF_ERROR(find_tensor(kind, layer, tensor));
  const std::size_t n = rows.size() / tensor->given.row_bytes;
  CQKV_RETURN_IF_ERROR(check_range("write_rows", first, n));
  Status status =
      without_exceptions("restoring a saved state", [&] { return restore(*tensor, first, rows); });
  if (status.code() == StatusCode::kResourceExhausted) {
    invalidate_cells(first, n);
  }
  return status;
}

Status KvCache::invalidate(std::size_t first, std::size_t n) {
  CQKV_RETURN_IF_ERROR(check_idle("invalidate"));
  CQKV_RETURN_IF_ERROR(check_range("invalidate", first, n));
  invalidate_cells(first, n);
  return {};
}

void KvCache::clear() {
  abandon();
  cells_.clear();
  window_.clear();
}

CacheSizes KvCache::sizes() const {
  CacheSizes sizes;
  sizes.table_bytes = table_bytes();
  for (const auto& tensor : tensors_) {
    sizes.code_bytes += tensor->codec->layout().tensor_bytes(options_.n_cells());
    sizes.nominal_bytes += options_.n_cells() * tensor->given.row_bytes;
    sizes.row_bytes += tensor->exact.row_bytes();
  }
  return sizes;
}

}  // namespace cqkv
