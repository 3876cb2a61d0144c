// How many bytes a coded cache takes and how many bits a channel that is, counted from
// the codebook alone; the device's own figure is compared with it in perplexity.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include <ggml.h>

#include "cqkv/codebook.h"

#include "cache/exact_window.h"
#include "codebook_file/kv_shape.h"

namespace cqkv::eval {

struct CacheSize {
  std::uint64_t code_bytes = 0;      ///< Coded tensors, whole blocks of 64 cells.
  std::uint64_t exact_bytes = 0;     ///< Tensors kept as 16-bit rows.
  std::uint64_t window_bytes = 0;    ///< Exact rows of the window and sinks, and their table.
  std::uint64_t spare_bytes = 0;     ///< Exact rows for when tokens are taken back.
  std::uint64_t position_bytes = 0;  ///< One 32-bit position a cell.
  std::uint64_t codebook_bytes = 0;  ///< Centroids, once a model, not a cache.
  std::uint64_t f16_bytes = 0;       ///< The same cache with 16-bit rows.
  std::uint64_t n_channels = 0;      ///< Of one token in all layers, keys and values.

  std::uint64_t cache_bytes() const {
    return code_bytes + exact_bytes + window_bytes + spare_bytes + position_bytes;
  }

  /// Codes (or 16 bits where exact; a stock cache's type), averaged over channels: no cells, no
  /// overhead.
  double bits_codes = 0;

  /// Everything, centroids included, at this many cells.
  double bits_all_in = 0;
};

/// For one cache of `n_cells` cells with room for the windows of n_sequences. A model whose layers
/// have caches of different sizes (sliding windows) is counted as if all had this one.
CacheSize coded_cache_size(const Codebook& codebook, const ModelKvShape& model, std::size_t n_cells,
                           const WindowSpec& window, std::size_t n_sequences = 1);

/// The stock cache, of rows of this type.
CacheSize plain_cache_size(const ModelKvShape& model, std::size_t n_cells,
                           ggml_type type = GGML_TYPE_F16);

}  // namespace cqkv::eval
