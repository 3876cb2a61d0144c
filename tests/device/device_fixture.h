// What the device tests share: the loaded backend, random codebooks, and a small
// cache driven by graphs of the shape that llama.cpp builds (rotate, view, store,
// attend), planned by ggml's scheduler over the device and the CPU. No model here;
// whole programs are tested in tests/e2e.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpp.h>
#include <ggml-cpu.h>
#include <ggml.h>
#include <gtest/gtest.h>

#include "cqkv/codebook.h"

namespace cqkv::device {

/// The backend, loaded once for the process.
struct Backend {
  ggml_backend_reg_t registry = nullptr;
  ggml_backend_dev_t device = nullptr;

  static const Backend& get();

  /// Empty on success.
  std::string set_codebook(const std::string& path) const;
  /// For caches made after the next set_codebook.
  void use_byte_tables(bool wanted) const;
  void set_window(int window, int sinks, int n_sequences = 1, int spare = -1) const;
  std::string last_error() const;
  std::uint64_t cache_bytes() const;
};

/// A codebook of `n_layers` alike with normal random centroids.
Codebook random_codebook(int n_layers, CodecSpec k, CodecSpec v, int n_kv_heads, int head_dim,
                         std::uint64_t seed);

/// Writes it to a temporary file and makes the device use it.
std::string use_codebook(const Codebook& codebook, const std::string& name);

/// |a - b| / |b|.
double relative_distance(const std::vector<float>& a, const std::vector<float>& b);

struct CacheShape {
  int n_layers = 2;
  int n_heads = 6;
  int n_kv_heads = 2;
  int head_dim = 64;
  int n_cells = 256;
  int n_streams = 1;
  ggml_type type = GGML_TYPE_F16;
  int rope_mode = 0;
  float max_bias = 0.0F;
  bool flash_attention = true;
  bool norm_after_rope = false;
};

/// The tokens of one evaluation.
struct Tokens {
  std::vector<std::int32_t> positions;
  std::vector<std::int64_t> cells;  // row indices: stream * n_cells + cell
  std::uint64_t seed = 1;
  std::vector<std::int32_t> row_ids;  // rows depend on (seed, row id); default: the positions
  bool image = false;                 // positions of rotations in sections differ
  int sequence = 0;                   // a query sees the cells of its own sequence only
};

/// Consecutive positions in consecutive cells.
Tokens run_of_tokens(int first, int n, std::uint64_t seed = 1);

class TestCache {
 public:
  explicit TestCache(const CacheShape& shape, int n_threads = 1);

  /// Whether the caches could be allocated.
  bool ok() const { return buffer_ != nullptr; }

  std::size_t buffer_size() const { return ggml_backend_buffer_get_size(buffer_.get()); }

  /// Stores the tokens in all layers and attends with a query for each; empty if the
  /// graph was refused or failed. Causal mask over the cells of the tokens' sequence.
  /// Result [layer][token][head][head_dim] flat.
  std::vector<float> evaluate(const Tokens& tokens, int stream = 0);

  /// Whether the last graph could be planned: what cannot be served must fail here,
  /// where a host still refuses the context, not when it computes.
  bool planned() const { return planned_; }

  /// The context shift that llama.cpp builds: shifts[cell] for all cells.
  bool shift(const std::vector<std::int32_t>& shifts);

  /// Saved rows of a layer.
  std::vector<std::uint8_t> save(KvKind kind, int layer, int first_cell, int n_cells) const;
  void restore(KvKind kind, int layer, int first_cell, const std::vector<std::uint8_t>& rows);
  void copy_stream(int from, int to);
  void clear();

  /// The cells from `first` on hold nothing any more, as after the host removed tokens.
  void forget(int first_cell, int n_cells);

  /// Tells the bookkeeping which cells hold which positions (after restore, copy).
  std::vector<std::int32_t>& positions_of_cells() { return cell_positions_; }

  const std::vector<std::int32_t>& positions_of_cells() const { return cell_positions_; }

  const CacheShape& shape() const { return shape_; }

 private:
  ggml_tensor* attention_node(ggml_context* context, ggml_tensor* q, ggml_tensor* mask, int layer,
                              int stream) const;

  CacheShape shape_;
  bool planned_ = false;
  ggml_context_ptr context_;
  ggml_backend_ptr device_;
  ggml_backend_ptr cpu_;
  ggml_backend_buffer_ptr buffer_;
  std::vector<ggml_tensor*> k_;
  std::vector<ggml_tensor*> v_;
  std::vector<std::int32_t> cell_positions_;  // -1: no token
  std::vector<int> cell_sequences_;
};

/// The record in a saved row, out of its pieces of 15 bits (src/cache/record.h).
std::vector<std::uint8_t> record_of(std::span<const std::uint8_t> row);

/// Saved rows as they would be if no row had been marked: which ones are depends on batches.
std::vector<std::uint8_t> without_marks(const std::vector<std::uint8_t>& rows,
                                        std::size_t row_bytes);

/// The same tokens at cells that lie `cells` further on, of another sequence.
Tokens moved(Tokens tokens, int cells, int sequence = 0);

/// Restores the first n rows of all tensors of a cache, with their positions, into cells
/// from first_cell on, and expects to read back what was restored.
void restore_all(const TestCache& original, int n, TestCache& restored, int first_cell);

/// Expects results and saved rows of n tokens to be equal to the bit for batches of 1, 7, 64
/// and 150 tokens and for 1 and 3 threads.
void expect_batches_do_not_matter(const CacheShape& shape, int n);

}  // namespace cqkv::device
