// The memory of the device: a buffer that holds coded caches, plain caches and
// ordinary compute tensors. Coded tensors look nominal from outside (16-bit rows of
// records); inside they belong to one KvCache (cache/kv_cache.h), smaller than nominal. Here is
// which tensor of the host is which of the cache, and when a step ends; what the operations do is
// in graph_ops.h.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include <ggml-backend-impl.h>
#include <ggml.h>

#include "cache/cell_table.h"
#include "cache/exact_window.h"
#include "cache/kv_cache.h"
#include "cache/record.h"
#include "device/codebook_library.h"

namespace cqkv::device {

/// One coded cache tensor of the host, and what it is in the cache.
struct CodedTensor {
  CacheName name;
  const LoadedCodebook* book = nullptr;
  const TensorCodebook* codebook = nullptr;
  std::size_t n_cells = 0;    ///< All streams.
  std::size_t row_bytes = 0;  ///< Nominal.
  bool verified = false;      ///< The model's fingerprint was compared for this layer.
  int n_views = 0;            ///< Attention's views of it in the graph being planned.
};

class KvBuffer {
 public:
  /// Null if memory cannot be had.
  static std::unique_ptr<KvBuffer> create(std::size_t size,
                                          std::shared_ptr<const CodebookLibrary> library);
  ~KvBuffer();
  KvBuffer(const KvBuffer&) = delete;
  KvBuffer& operator=(const KvBuffer&) = delete;
  KvBuffer(KvBuffer&&) = delete;
  KvBuffer& operator=(KvBuffer&&) = delete;

  void* base() const { return memory_; }

  /// Registers a tensor placed in this buffer. kInvalidArgument if it should be coded
  /// but cannot be (its type, its row too small for a record).
  Status add(ggml_tensor* tensor);

  /// Whether a cache tensor would be coded if it were added.
  bool would_code(const ggml_tensor* tensor) const;

  /// The coded tensor that a view shows, or null.
  CodedTensor* coded(const ggml_tensor* tensor);

  /// All coded tensors of this buffer; null if there are none.
  KvCache* cache() const { return cache_.get(); }

  bool has_cache() const { return has_cache_; }

  /// Bytes of the tables of positions and exact rows.
  std::size_t extra_bytes() const { return cache_ == nullptr ? 0 : cache_->table_bytes(); }

  /// The first key tensor of this buffer that stored rotated keys: its store begins a step, with
  /// the graph's positions, and it applies context shifts.
  const CodedTensor* position_owner() const { return position_owner_; }

  void set_position_owner(const CodedTensor* tensor) { position_owner_ = tensor; }

  /// Ends the step of the graph before, which the host does not tell: before anything but that
  /// graph's operations.
  void settle();

  /// The same for a graph that failed: its tokens get no exact rows.
  void abandon() {
    if (cache_ != nullptr) {
      cache_->abandon();
    }
  }

  /// A step begins: rows that cannot be restored are reported again.
  void begin_step() { reported_bad_row_ = false; }

  void clear(std::uint8_t value);

  /// Nominal rows [first, first + n) of a coded tensor out and in, as records. Rows that are no
  /// records of it are reported, once between two steps.
  Status read_rows(const CodedTensor& tensor, std::size_t first, std::span<std::uint8_t> rows);
  void write_rows(const CodedTensor& tensor, std::size_t first, std::span<const std::uint8_t> rows);

  /// Copies cells of one coded tensor within this buffer (a stream to another).
  void copy_rows(const CodedTensor& tensor, std::size_t from, std::size_t to, std::size_t n);

 private:
  KvBuffer() = default;
  CacheOptions options_for(const ggml_tensor* tensor, const LoadedCodebook& book) const;
  Status make_cache(const ggml_tensor* tensor, const LoadedCodebook& book);
  void warn_if_evicting();

  std::uint8_t* memory_ = nullptr;
  std::size_t size_ = 0;
  bool has_cache_ = false;
  bool reported_bad_row_ = false;  // since the last step
  bool warned_of_eviction_ = false;
  std::shared_ptr<const CodebookLibrary> library_;
  std::map<const void*, std::unique_ptr<CodedTensor>> tensors_;  // by data pointer
  std::unique_ptr<KvCache> cache_;
  const CodedTensor* position_owner_ = nullptr;
};

/// The buffer type of the device.
ggml_backend_buffer_type_t kv_buffer_type(ggml_backend_dev_t device);

/// Whether the tensor's memory belongs to this device.
bool is_ours(const ggml_tensor* tensor);

/// The buffer of a tensor that is_ours; null in a dry run. There (llama.cpp's -fit) caches have
/// a buffer without memory, which ggml makes without asking the device.
KvBuffer* find_buffer(const ggml_tensor* tensor);

/// The same outside of dry runs.
KvBuffer& buffer_of(const ggml_tensor* tensor);

/// Bytes of a coded cache tensor and its part of the exact window.
CodedTensorSize coded_size(const CodebookLibrary& library, const ggml_tensor* tensor,
                           const LoadedCodebook& book, const TensorCodebook& codebook);

/// Whether a cache tensor of that name and width would be coded with the library in use.
const TensorCodebook* codebook_for(const CodebookLibrary& library, const ggml_tensor* tensor,
                                   const LoadedCodebook** book);

/// Bytes of the newest buffer that holds a cache, as the host's log shows them.
std::uint64_t newest_cache_bytes();

}  // namespace cqkv::device
