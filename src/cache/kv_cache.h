// A coded cache of keys and values, of any engine: codes, exact rows, positions of cells, the exact
// window, records. What an engine's tensors and graphs are to it is the engine's adapter
// (llama.cpp: src/device).
//
// A step stores the tokens of a batch and attends to them, layer by layer:
//
//     plan -> of each layer: store_keys, store_values, attend -> commit, or abandon after a failure
//
// Between steps cells are shifted, copied, saved (read_rows) and restored (write_rows). A call out
// of this order is kInvalidArgument and changes nothing.
//
// A cell is the place of one token in all layers; cells of one stream follow each other. Memory of
// codes and exact rows may be the caller's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cqkv/codebook.h"
#include "cqkv/status.h"

#include "attention/attention.h"
#include "cache/cell_table.h"
#include "cache/exact_window.h"
#include "cache/record.h"
#include "cache/window_pool.h"
#include "codec/exact_row.h"
#include "codec/tensor_codec.h"
#include "core/parallel.h"
#include "rope/rope.h"

namespace cqkv {

struct CacheOptions {
  std::size_t n_streams = 1;
  std::size_t cells_per_stream = 0;
  WindowSpec window;
  WindowPool pool;          ///< Of one stream (window_pool.h).
  bool byte_tables = true;  ///< Attention on centroids as bytes; else in floats, slowly.

  std::size_t n_cells() const { return n_streams * cells_per_stream; }

  bool operator==(const CacheOptions&) const = default;
};

/// Keys or values of one layer.
struct CacheTensor {
  KvKind kind = KvKind::kKey;
  int layer = 0;
  const TensorCodebook* codebook = nullptr;  ///< Must outlive the cache.
  std::uint64_t identity = 0;                ///< Codebook::identity, for records.
  std::size_t row_bytes = 0;                 ///< Of a saved row: 2 bytes a channel as a rule.
  /// KvCache::tensor_bytes, aligned to 64; null: the cache's own. Contents before a token is stored
  /// do not matter.
  std::uint8_t* memory = nullptr;
};

/// The tokens of a step: token i, at positions[i] of its sequence, goes into cells[i].
struct StepTokens {
  std::span<const std::int32_t> positions;
  std::span<const std::size_t> cells;
  /// Positions are known from this layer on. Layers before it have no window and rotate nothing.
  int first_layer = 0;
};

/// Rows of tokens, f32 [n_channels] each: row i at data + i * row_bytes.
struct TokenRows {
  const std::uint8_t* data = nullptr;
  std::size_t row_bytes = 0;
};

/// Attention of some queries over the cells of one stream, from first_cell on, a multiple of
/// kBlockCells. Of `call` the cache fills in the sides that it codes, positions, rotation and exact
/// rows; the caller the rest, and a side that is not coded.
struct StreamAttention {
  std::size_t first_cell = 0;
  AttentionCall call;
};

/// Working memory, which caches that are not used at once may share.
struct CacheWorkspace {
  AttentionWorkspace attention;
  std::vector<float> rows;
  std::vector<float> decoded;  // a row for each thread
  std::vector<std::uint16_t> codes;
};

/// What a cache takes, in bytes.
struct CacheSizes {
  std::size_t code_bytes = 0;
  std::size_t nominal_bytes = 0;  ///< Of the same tensors with saved rows.
  std::size_t row_bytes = 0;      ///< Of one exact row in all tensors.
  std::size_t table_bytes = 0;    ///< Positions and exact rows' bookkeeping.
};

/// One call at a time.
class KvCache {
 public:
  explicit KvCache(const CacheOptions& options);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;
  KvCache(KvCache&&) = delete;
  KvCache& operator=(KvCache&&) = delete;

  /// Memory of one tensor of such a cache.
  static CodedTensorSize tensor_size(const CacheOptions& options, const TensorCodebook& codebook);

  /// Adds a tensor; before the first step. Layers may lack a side, which is then exact and the
  /// caller's.
  /// @return kInvalidArgument if the layer has it already, kUnsupported if a saved row is too
  ///   short for a record, kResourceExhausted.
  Status add(const CacheTensor& tensor);

  const CacheOptions& options() const { return options_; }

  bool has(KvKind kind, int layer) const { return find(kind, layer) != nullptr; }

  // ---- A step ----

  /// Begins a step: its tokens' cells have these positions from now on, and no exact rows yet.
  /// @return kInvalidArgument during a step, for a cell that is not there, or if the numbers of
  ///   positions and cells differ.
  Status plan(const StepTokens& tokens);

  bool in_step() const { return in_step_; }

  /// Whether the positions of cells are known where this layer is read.
  bool knows_positions(int layer) const { return layer >= first_layer_; }

  /// Codes the keys of one token for each cell. `rope`: the rows are rotated by it, and rotated
  /// back before they are coded; needs a step of as many tokens. Null: they are not.
  /// @return kInvalidArgument (order, layer, cell), kResourceExhausted: the step must be abandoned.
  Status store_keys(int layer, const TokenRows& rows, std::span<const std::size_t> cells,
                    const RopeParams* rope, ParallelFor& parallel, CacheWorkspace& workspace);

  /// The same for values.
  Status store_values(int layer, const TokenRows& rows, std::span<const std::size_t> cells,
                      ParallelFor& parallel, CacheWorkspace& workspace);

  /// Attention over a layer, stream by stream (attention.h). With a window the queries are the
  /// tokens of the step, those of the streams one after the other, of this layer's stored sides.
  /// @return kInvalidArgument (order, shapes), kMismatch if a query would see a token that could
  ///   not be restored, kResourceExhausted: the step must be abandoned.
  Status attend(int layer, std::span<StreamAttention> streams, ParallelFor& parallel,
                CacheWorkspace& workspace);

  /// Ends a step. Tokens of a layer that was stored but never attended get no exact rows.
  Status commit();

  /// Ends a step that failed, if there is one: its tokens get no exact rows.
  void abandon();

  // ---- Between steps ----

  /// Adds shifts[i] to the position of cell first + i, where there is a token.
  Status shift(std::size_t first, std::span<const std::int32_t> shifts);

  /// Copies n cells of one tensor to others; after all tensors, keys first, they are the same.
  /// @return kResourceExhausted: the target cells must not be read then, and are not.
  Status copy(KvKind kind, int layer, std::size_t from, std::size_t to, std::size_t n);

  /// Rows of cells from `first` on as records (record.h); of cells without a token zeros.
  Status read_rows(KvKind kind, int layer, std::size_t first, std::span<std::uint8_t> rows);

  /// The reverse. The first tensor that was added says what a cell is, and must come first.
  /// @return What is wrong with the first row that is no record of this tensor; its cell must not
  ///   be read then, and is not; other rows are restored. kResourceExhausted: none is.
  Status write_rows(KvKind kind, int layer, std::size_t first, std::span<const std::uint8_t> rows);

  /// Rows that should have been restored and were not: a query that sees one fails.
  Status invalidate(std::size_t first, std::size_t n);

  /// No cell has a token. Ends a step.
  void clear();

  // ---- What there is ----

  CacheSizes sizes() const;

  /// Bytes of the tables of positions and exact rows, which belong to no tensor.
  std::size_t table_bytes() const { return cells_.bytes() + window_.bytes(); }

  const CellTable& cells() const { return cells_; }

  const ExactWindow& window() const { return window_; }

 private:
  static constexpr int kNoLayer = INT32_MAX;

  // A coded tensor.
  struct Tensor {
    CacheTensor given;
    std::unique_ptr<const TensorCodec> codec;
    ExactRowLayout exact;
    std::uint8_t* codes = nullptr;
    std::uint8_t* pool = nullptr;  // exact rows of the window's slots, after the codes
    std::unique_ptr<std::uint8_t, void (*)(void*)> own{nullptr, nullptr};
    bool rotated = false;  // keys: a rotation preceded the last store; `rope` says which
    RopeParams rope;
    std::uint64_t stored_step = 0;
    std::uint64_t moved_step = 0;  // of exact rows to the pool
  };

  // Exact rows of the tokens of one step, of the layer in work.
  struct BatchRows {
    const Tensor* owner = nullptr;
    std::vector<std::uint8_t> bytes;
  };

  // The tokens of the step, and their rotation, kept from layer to layer.
  struct Batch {
    std::vector<std::int32_t> positions;
    bool has_angles = false;
    RopeParams rope;
    std::vector<float> cosines;  // [token, n_dims / 2]
    std::vector<float> sines;
  };

  // Tokens from `first` on.
  struct TokenChunk {
    std::size_t first;
    std::size_t n;
  };

  Tensor* find(KvKind kind, int layer) const;
  Status find_tensor(KvKind kind, int layer, Tensor*& tensor) const;
  Status check_idle(const char* call) const;
  Status check_cells(std::span<const std::size_t> cells) const;
  Status check_range(const char* call, std::size_t first, std::size_t n) const;

  // kv_cache_step.cpp
  bool uses_window(int layer) const { return window_.enabled() && knows_positions(layer); }

  static TokenChunk chunk_at(int chunk, std::size_t n_tokens);
  void compute_angles(const RopeParams& rope);
  Status set_rotation(Tensor& tensor, std::size_t n_tokens, const RopeParams* rope);
  Status store(Tensor& tensor, const TokenRows& rows, std::span<const std::size_t> cells,
               ParallelFor& parallel, CacheWorkspace& workspace);
  void take_rows(const Tensor& tensor, const TokenRows& rows, TokenChunk chunk, float* channels,
                 float* out) const;
  void encode_rows(const Tensor& tensor, const TokenRows& rows, std::size_t n_tokens,
                   ParallelFor& parallel, CacheWorkspace& workspace) const;
  static void write_exact_rows(const Tensor& tensor, const CacheWorkspace& workspace,
                               TokenChunk chunk, float* decoded, std::uint8_t* exact);
  BatchRows& batch_rows(const Tensor& tensor);
  std::uint8_t* begin_exact_rows(Tensor& tensor, std::size_t n_tokens);
  Status check_streams(std::span<const StreamAttention> streams) const;
  Status plan_window(std::span<const StreamAttention> streams);
  Status exact_side(const Tensor* tensor, ExactRows::Side& side);
  Status exact_rows(const Tensor* k, const Tensor* v, std::span<const StreamAttention> streams,
                    ExactRows& rows);
  Status check_visible(std::size_t first, const AttentionCall& call) const;
  void fill_side(Tensor* tensor, std::size_t first_cell, CacheSide& side) const;
  void renew_codec(Tensor& tensor) const;
  const RopeTable* rope_table(const Tensor& keys);
  Status attend_streams(Tensor* k, Tensor* v, std::span<StreamAttention> streams,
                        const ExactRows* exact, ParallelFor& parallel, CacheWorkspace& workspace);
  Status attend_exactly(Tensor* k, Tensor* v, std::span<StreamAttention> streams,
                        ParallelFor& parallel, CacheWorkspace& workspace);
  void move_exact_rows(Tensor* tensor);
  void end_step(bool moved);

  // kv_cache_rows.cpp
  static RecordHeader header_of(const Tensor& tensor);
  void save(const Tensor& tensor, std::size_t first, std::span<std::uint8_t> rows) const;
  Status restore(const Tensor& tensor, std::size_t first, std::span<const std::uint8_t> rows);
  Status restore_row(const Tensor& tensor, std::size_t cell, std::span<const std::uint8_t> row,
                     std::vector<std::uint16_t>& codes, RecordScratch& scratch);
  void restore_exact_row(const Tensor& tensor, std::size_t cell, const RecordHeader& header,
                         std::span<const std::uint8_t> exact);
  void invalidate_cells(std::size_t first, std::size_t n);
  static void copy_codes(const Tensor& tensor, std::size_t from, std::size_t to, std::size_t n);
  void copy_cells(const Tensor& tensor, std::size_t from, std::size_t to, std::size_t n);

  bool decides_cells(const Tensor& tensor) const { return &tensor == tensors_.front().get(); }

  CacheOptions options_;
  std::vector<std::unique_ptr<Tensor>> tensors_;  // in the order in which they were added
  CellTable cells_;
  ExactWindow window_;
  bool in_step_ = false;
  std::uint64_t step_ = 0;
  int first_layer_ = kNoLayer;
  Batch batch_;
  BatchRows key_rows_;
  BatchRows value_rows_;
  std::vector<std::unique_ptr<RopeTable>> rope_tables_;
};

}  // namespace cqkv
