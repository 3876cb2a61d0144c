// The memory of the device: a buffer that holds coded caches, plain caches and
// ordinary compute tensors. Coded tensors look nominal from outside (16-bit rows of
// records); inside they are blocks of codes, smaller than nominal. What the
// operations do with them is in graph_ops.h.
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
#include "cache/record.h"
#include "codec/byte_tables.h"
#include "codec/code_blocks.h"
#include "codec/exact_row.h"
#include "device/codebook_library.h"
#include "rope/rope.h"

namespace cqkv::device {

/// One coded cache tensor.
struct CodedTensor {
  CacheName name;
  const LoadedCodebook* book = nullptr;
  const TensorCodebook* codebook = nullptr;
  CodeLayout layout;
  std::uint8_t* codes = nullptr;
  std::uint8_t* pool = nullptr;  ///< Exact rows of the window's slots, behind the codes.
  ExactRowLayout exact;
  std::size_t n_cells = 0;    ///< All streams.
  std::size_t row_bytes = 0;  ///< Nominal.
  bool verified = false;      ///< The model's fingerprint was compared for this layer.
  bool rotated = false;       ///< Keys: a rotation precedes the store; `rope` says which.
  RopeParams rope;
  std::unique_ptr<const ByteTables> tables;  ///< See KvBuffer::byte_tables.
  int n_views = 0;                 ///< Attention's views of it in the graph being planned.
  std::uint64_t stored_epoch = 0;  ///< Graph of the window that last stored rows,
  std::uint64_t moved_epoch = 0;   ///< and in which they were moved to the pool.
};

/// Exact rows of the tokens of one graph, of the layer in work.
struct BatchRows {
  const CodedTensor* owner = nullptr;
  std::vector<std::uint8_t> bytes;
};

/// The positions of the tokens being stored, and their rotation, kept from the first
/// key layer of a graph for the others: the graph's own position tensor may be
/// overwritten after its last use.
struct PositionBatch {
  std::vector<std::int32_t> positions;
  RopeParams rope;
  std::vector<float> cosines;  // [token, n_dims / 2]
  std::vector<float> sines;
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

  /// What a user is told of the coded caches in this buffer; zeros if nothing is coded.
  struct Contents {
    std::size_t n_cells = 0;
    std::size_t code_bytes = 0;
    std::size_t nominal_bytes = 0;  ///< Of the same tensors with 16-bit rows.
    std::size_t row_bytes = 0;      ///< Of one exact row in all tensors.
    WindowSpec window;
    WindowPool pool;  ///< Of all streams.
    std::size_t table_bytes = 0;
  };

  Contents contents() const;

  /// Registers a tensor placed in this buffer. kInvalidArgument if it should be coded
  /// but cannot be (its type, its row too small for a record).
  Status add(ggml_tensor* tensor);

  /// The coded tensor behind a view, or null.
  CodedTensor* coded(const ggml_tensor* tensor);

  CellTable& cells() { return cells_; }

  ExactWindow& window() { return window_; }

  /// The tokens of a graph are about to be stored: positions_owner's call, once a graph.
  void begin_tokens(std::span<const std::int32_t> positions, std::span<const std::size_t> cells);

  /// Whether the positions of cells are known when this tensor is read: not in layers before
  /// the first one that stores rotated keys as codes, which brings them.
  bool knows_positions(const CodedTensor& tensor) const;

  /// Whether exact rows are kept for this tensor in this graph, which needs positions.
  bool uses_window(const CodedTensor& tensor) const;

  /// Where the exact rows of n_tokens tokens, about to be stored, go.
  std::uint8_t* begin_exact_rows(CodedTensor& tensor, std::size_t n_tokens);

  /// The exact rows of the graph's tokens, null if another layer has overwritten them.
  const std::uint8_t* exact_rows(const CodedTensor& tensor);

  /// After the tensor's attention: moves rows that stay exact to the pool.
  void move_exact_rows(CodedTensor& tensor);

  /// Ends the graph's bookkeeping; before anything but the next graph's operations.
  void settle();

  /// The same for a graph that failed: its tokens get no exact rows.
  void abandon() { window_.commit(false); }

  PositionBatch& batch() { return batch_; }

  const PositionBatch& batch() const { return batch_; }

  /// The first key tensor of this buffer that stored rotated keys: it reads the
  /// graph's positions, and it applies context shifts.
  const CodedTensor* position_owner() const { return position_owner_; }

  void set_position_owner(const CodedTensor* tensor) { position_owner_ = tensor; }

  /// The tensor's centroids as bytes, for the kernels in use and, of keys, the rotation last
  /// stored with; made on first use and when either changes. Null if there are none for its
  /// codes, or if they are too coarse for them. One call at a time.
  const ByteTables* byte_tables(CodedTensor& tensor);

  /// A table of angles for these parameters, shared by all layers.
  RopeTable& rope_table(const RopeParams& params);

  /// Bytes of the tables of positions and exact rows.
  std::size_t extra_bytes() const { return cells_.bytes() + window_.bytes(); }

  bool has_coded() const { return !tensors_.empty(); }

  bool has_cache() const { return has_cache_; }

  void clear(std::uint8_t value);

  /// Nominal rows [first, first + n) of a coded tensor out and in, as records.
  void read_rows(const CodedTensor& tensor, std::size_t first, std::span<std::uint8_t> rows);
  void write_rows(const CodedTensor& tensor, std::size_t first, std::span<const std::uint8_t> rows);

  /// Rows that should have been restored and were not: a query that sees one must fail.
  void invalidate_rows(std::size_t first, std::size_t n);

  /// Copies cells of one coded tensor within this buffer (a stream to another).
  void copy_rows(const CodedTensor& tensor, std::size_t from, std::size_t to, std::size_t n);

 private:
  KvBuffer() = default;
  Status configure_window(const ggml_tensor* tensor, const LoadedCodebook& book);
  void restore_row(const CodedTensor& tensor, std::size_t cell, std::span<const std::uint8_t> row,
                   std::vector<std::uint16_t>& codes, RecordScratch& scratch);
  void restore_exact_row(const CodedTensor& tensor, std::size_t cell, const RecordHeader& header,
                         std::span<const std::uint8_t> exact);
  static void copy_codes(const CodedTensor& tensor, std::size_t from, std::size_t to,
                         std::size_t n);
  BatchRows& batch_rows(const CodedTensor& tensor);
  void warn_if_evicting();

  std::uint8_t* memory_ = nullptr;
  std::size_t size_ = 0;
  bool has_cache_ = false;
  bool reported_bad_row_ = false;  // since the last graph
  std::shared_ptr<const CodebookLibrary> library_;
  std::map<const void*, std::unique_ptr<CodedTensor>> tensors_;  // by data pointer
  const CodedTensor* state_owner_ = nullptr;  // first coded tensor: decides positions on restore
  const CodedTensor* position_owner_ = nullptr;
  CellTable cells_;
  ExactWindow window_;
  BatchRows key_rows_;
  BatchRows value_rows_;
  bool warned_of_eviction_ = false;
  PositionBatch batch_;
  std::vector<std::unique_ptr<RopeTable>> rope_tables_;
};

/// The buffer type of the device.
ggml_backend_buffer_type_t kv_buffer_type(ggml_backend_dev_t device);

/// Whether the tensor's memory belongs to this device.
bool is_ours(const ggml_tensor* tensor);

/// The buffer behind a tensor that is_ours; null in a dry run. There (llama.cpp's -fit) caches have
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
