// See window_pool.h.
#include "cache/window_pool.h"

#include <algorithm>

#include "codec/exact_row.h"

namespace cqkv {
namespace {

// By default all rows beyond the window take no more than this part of the codes.
constexpr std::size_t kSpareShare = 4;

// Rows that weigh as much as a share of the codes of n_cells cells.
std::size_t default_spare(const Codebook& codebook, std::size_t n_cells) {
  std::size_t code_bits = 0;
  std::size_t row_bytes = 0;
  for (const LayerCodebook& layer : codebook.layers) {
    for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
      if (const TensorCodebook* tensor = layer.get(kind)) {
        code_bits += static_cast<std::size_t>(tensor->n_codes()) * tensor->spec().code_bits();
        row_bytes += ExactRowLayout{tensor->n_channels()}.row_bytes();
      }
    }
  }
  return row_bytes == 0 ? 0 : n_cells * code_bits / 8 / kSpareShare / row_bytes;
}

}  // namespace

WindowOverride WindowOverride::or_else(const WindowOverride& other) const {
  return {.window = window ? window : other.window,
          .sinks = sinks ? sinks : other.sinks,
          .spare = spare ? spare : other.spare};
}

WindowSpec WindowOverride::spec_of(const Codebook& codebook) const {
  const auto bounded = [](std::uint32_t value) {
    return static_cast<int>(std::min<std::uint32_t>(value, kMaxWindow));
  };
  return {.window = window.value_or(bounded(codebook.window)),
          .sinks = sinks.value_or(bounded(codebook.sinks)),
          .spare = spare};
}

WindowPool window_pool(const WindowSpec& spec, const Codebook& codebook, std::size_t n_cells,
                       std::size_t n_sequences) {
  const std::size_t needed = spec.rows_per_sequence() * n_sequences;
  WindowPool pool{.n_rows = needed, .n_spare = 0};
  if (spec.window > 0) {
    const std::size_t spare = spec.spare ? static_cast<std::size_t>(*spec.spare) * n_sequences
                                         : default_spare(codebook, n_cells);
    const std::size_t rollback = WindowSpec::kRollback * n_sequences;
    pool.n_spare = spare - std::min(spare, rollback);
  }
  pool.n_rows = std::min(n_cells, needed + pool.n_spare);
  pool.n_spare = pool.n_rows - std::min(pool.n_rows, needed);
  return pool;
}

}  // namespace cqkv
