// The buffer type and buffer vtables that ggml calls; contents are in kv_buffer.cpp.
//
// Views of coded tensors have nominal offsets, so row numbers come from view_offs
// and the row size, and nothing is ever read or written at data + offset.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/exceptions.h"
#include "device/kv_buffer.h"
#include "device/refusal.h"
#include "graph/sources.h"

namespace cqkv::device {
namespace {

std::atomic<std::uint64_t> cache_bytes{0};

// Set when sizes of cache tensors were asked for on this thread: the allocation that
// follows is that of a new cache, not of a planned graph.
thread_local bool allocating_cache = false;

ggml_backend_buffer_type buffer_type;

// Of rows that could not be saved: no record, so that restoring them is an error.
constexpr int kUnreadable = 0xFF;

KvBuffer& contents(ggml_backend_buffer_t buffer) {
  return *static_cast<KvBuffer*>(buffer->context);
}

struct RowRange {
  std::size_t first = 0;
  std::size_t n = 0;
  bool whole = false;  // the bytes are whole rows
};

RowRange row_range(const CodedTensor& coded, const ggml_tensor* tensor, std::size_t offset,
                   std::size_t size) {
  const std::size_t begin = offset + (tensor->view_src != nullptr ? tensor->view_offs : 0);
  return {begin / coded.row_bytes, size / coded.row_bytes,
          begin % coded.row_bytes == 0 && size % coded.row_bytes == 0 &&
              begin + size <= coded.n_cells * coded.row_bytes};
}

void free_buffer(ggml_backend_buffer_t buffer) {
  delete &contents(buffer);
}

void* get_base(ggml_backend_buffer_t buffer) {
  return contents(buffer).base();
}

ggml_status init_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor) {
  KvBuffer& kv = contents(buffer);
  allocating_cache = false;  // placing a tensor asks for its size once more
  const std::size_t before = kv.extra_bytes();
  const Status status = without_exceptions("placing a cache", [&] { return kv.add(tensor); });
  if (!status.ok()) {
    report_error(status.message());
    return GGML_STATUS_FAILED;
  }
  // The log and memory breakdown of the host show this size: positions belong to it.
  buffer->size += kv.extra_bytes() - before;
  if (kv.has_cache()) {
    cache_bytes = buffer->size;
  }
  return GGML_STATUS_SUCCESS;
}

void partial_rows(const ggml_tensor* tensor, std::size_t offset, std::size_t size) {
  report_error(std::string("tensor ") + tensor->name + ": access to " + std::to_string(size) +
               " bytes at " + std::to_string(offset) + " is not whole rows");
}

void set_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor, const void* data,
                std::size_t offset, std::size_t size) {
  KvBuffer& kv = contents(buffer);
  const CodedTensor* coded = kv.coded(tensor);
  if (coded == nullptr) {
    std::memcpy(static_cast<char*>(tensor->data) + offset, data, size);
    return;
  }
  const RowRange range = row_range(*coded, tensor, offset, size);
  if (!range.whole) {
    partial_rows(tensor, offset, size);
    return;
  }
  kv.write_rows(*coded, range.first, {static_cast<const std::uint8_t*>(data), size});
}

void get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor* tensor, void* data,
                std::size_t offset, std::size_t size) {
  KvBuffer& kv = contents(buffer);
  const CodedTensor* coded = kv.coded(tensor);
  if (coded == nullptr) {
    std::memcpy(data, static_cast<const char*>(tensor->data) + offset, size);
    return;
  }
  const RowRange range = row_range(*coded, tensor, offset, size);
  if (!range.whole) {
    partial_rows(tensor, offset, size);
    std::memset(data, 0, size);
    return;
  }
  const Status status = kv.read_rows(*coded, range.first, {static_cast<std::uint8_t*>(data), size});
  if (!status.ok()) {
    report_error(status.message());
    std::memset(data, kUnreadable, size);
  }
}

void memset_tensor(ggml_backend_buffer_t buffer, ggml_tensor* tensor, std::uint8_t value,
                   std::size_t offset, std::size_t size) {
  const CodedTensor* coded = contents(buffer).coded(tensor);
  if (coded == nullptr) {
    std::memset(static_cast<char*>(tensor->data) + offset, value, size);
    return;
  }
  std::vector<std::uint8_t> row;
  const Status status = without_exceptions(
      "clearing rows", [&] { row.assign(std::min(coded->row_bytes, size), value); });
  if (!status.ok()) {
    report_error(status.message());
    return;
  }
  for (std::size_t done = 0; done < size; done += row.size()) {
    set_tensor(buffer, tensor, row.data(), offset + done, std::min(row.size(), size - done));
  }
}

bool cpy_tensor(ggml_backend_buffer_t buffer, const ggml_tensor* src, ggml_tensor* dst) {
  if (!is_ours(src)) {
    return false;
  }
  KvBuffer& kv = contents(buffer);
  KvBuffer& source = buffer_of(src);
  const CodedTensor* to = kv.coded(dst);
  const CodedTensor* from = source.coded(src);
  if (to == nullptr && from == nullptr) {
    if (!ggml_is_contiguous(src) || !ggml_is_contiguous(dst)) {
      return false;
    }
    std::memcpy(dst->data, src->data, ggml_nbytes(src));
    return true;
  }
  if (to != from) {
    return false;  // ggml then copies through saved rows
  }
  const std::size_t size = ggml_nbytes(src);
  const RowRange source_rows = row_range(*from, src, 0, size);
  const RowRange rows = row_range(*to, dst, 0, size);
  if (!source_rows.whole || !rows.whole) {
    return false;
  }
  kv.copy_rows(*to, source_rows.first, rows.first, rows.n);
  return true;
}

void clear(ggml_backend_buffer_t buffer, std::uint8_t value) {
  contents(buffer).clear(value);
}

const char* type_name(ggml_backend_buffer_type_t /*type*/) {
  return "CQ0";
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, std::size_t size) {
  const bool refused = take_refusal();
  const bool for_cache = allocating_cache;
  allocating_cache = false;
  if (refused && !for_cache) {
    return nullptr;
  }
  const auto library = current_library();
  if (!library.ok()) {
    report_error(library.status().message());
    return nullptr;
  }
  auto kv = KvBuffer::create(size, *library);
  if (kv == nullptr) {
    report_error("out of memory: " + std::to_string(size) + " bytes for a buffer");
    return nullptr;
  }
  static constexpr ggml_backend_buffer_i kInterface = {
      .free_buffer = free_buffer,
      .get_base = get_base,
      .init_tensor = init_tensor,
      .memset_tensor = memset_tensor,
      .set_tensor = set_tensor,
      .get_tensor = get_tensor,
      .set_tensor_2d = nullptr,
      .get_tensor_2d = nullptr,
      .cpy_tensor = cpy_tensor,
      .clear = clear,
      .reset = nullptr,
  };
  return ggml_backend_buffer_init(type, kInterface, kv.release(), size);
}

std::size_t get_alignment(ggml_backend_buffer_type_t /*type*/) {
  return 64;
}

std::size_t get_alloc_size(ggml_backend_buffer_type_t /*type*/, const ggml_tensor* tensor) {
  if (!is_cache_like(tensor->name) || tensor->view_src != nullptr) {
    return ggml_nbytes(tensor);
  }
  allocating_cache = true;
  const auto library = current_library();
  if (!library.ok() || tensor->type != GGML_TYPE_F16) {
    return ggml_nbytes(tensor);  // refused with its reason when the tensor is added
  }
  const LoadedCodebook* book = nullptr;
  const TensorCodebook* codebook = codebook_for(**library, tensor, &book);
  return codebook == nullptr ? ggml_nbytes(tensor)
                             : coded_size(**library, tensor, *book, *codebook).total();
}

bool is_host(ggml_backend_buffer_type_t /*type*/) {
  return false;
}

}  // namespace

ggml_backend_buffer_type_t kv_buffer_type(ggml_backend_dev_t device) {
  buffer_type = {
      .iface = {.get_name = type_name,
                .alloc_buffer = alloc_buffer,
                .get_alignment = get_alignment,
                .get_max_size = nullptr,
                .get_alloc_size = get_alloc_size,
                .is_host = is_host},
      .device = device,
      .context = nullptr,
  };
  return &buffer_type;
}

bool is_ours(const ggml_tensor* tensor) {
  const ggml_tensor* root = root_of(tensor);
  return root->buffer != nullptr && root->buffer->buft == &buffer_type;
}

KvBuffer* find_buffer(const ggml_tensor* tensor) {
  return static_cast<KvBuffer*>(root_of(tensor)->buffer->context);
}

KvBuffer& buffer_of(const ggml_tensor* tensor) {
  return *find_buffer(tensor);
}

std::uint64_t newest_cache_bytes() {
  return cache_bytes;
}

}  // namespace cqkv::device
