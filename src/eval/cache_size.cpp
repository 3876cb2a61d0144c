// See cache_size.h.
#include "eval/cache_size.h"

#include "codec/exact_row.h"

namespace cqkv::eval {
namespace {

constexpr std::uint64_t kHalfBytes = 2;

}  // namespace

CacheSize plain_cache_size(const ModelKvShape& model, std::size_t n_cells, ggml_type type) {
  CacheSize result;
  for (const LayerKvShape& layer : model.layers) {
    result.n_channels += layer.n_channels(KvKind::kKey) + layer.n_channels(KvKind::kValue);
  }
  result.f16_bytes = kHalfBytes * result.n_channels * n_cells;
  const auto block = static_cast<std::uint64_t>(ggml_blck_size(type));
  result.exact_bytes = result.n_channels * n_cells / block * ggml_type_size(type);
  result.bits_codes = 8.0 * static_cast<double>(ggml_type_size(type)) / static_cast<double>(block);
  result.bits_all_in = result.bits_codes;
  return result;
}

CacheSize coded_cache_size(const Codebook& codebook, const ModelKvShape& model, std::size_t n_cells,
                           const WindowSpec& window, std::size_t n_sequences) {
  CacheSize result = plain_cache_size(model, n_cells);
  result.exact_bytes = 0;
  result.position_bytes = sizeof(std::int32_t) * n_cells;
  result.codebook_bytes = codebook.centroid_bytes();
  const WindowPool pool = window_pool(window, codebook, n_cells, n_sequences);
  result.window_bytes = window.enabled() ? ExactWindow::table_bytes(n_cells, pool.n_rows) : 0;
  double bits = 0;
  for (std::size_t il = 0; il < model.layers.size(); il++) {
    for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
      const std::size_t n_channels = model.layers[il].n_channels(kind);
      const TensorCodebook* tensor =
          il < codebook.layers.size() ? codebook.layers[il].get(kind) : nullptr;
      if (tensor == nullptr) {
        result.exact_bytes += kHalfBytes * n_channels * n_cells;
        bits += 16.0 * static_cast<double>(n_channels);
        continue;
      }
      const CodeLayout layout(tensor->spec());
      const CodedTensorSize size = CodedTensorSize::of(layout, n_cells, pool.n_rows);
      const std::size_t spare_bytes =
          pool.n_spare * ExactRowLayout{tensor->n_channels()}.row_bytes();
      result.code_bytes += size.code_bytes;
      result.spare_bytes += spare_bytes;
      result.window_bytes += size.total() - size.code_bytes - spare_bytes;
      bits += tensor->spec().bits_per_channel() * static_cast<double>(n_channels);
    }
  }
  const auto n_channels = static_cast<double>(result.n_channels);
  const auto n_all = n_channels * static_cast<double>(n_cells);
  result.bits_codes = n_channels == 0 ? 16 : bits / n_channels;
  result.bits_all_in =
      n_all == 0 ? 16
                 : 8.0 * static_cast<double>(result.cache_bytes() + result.codebook_bytes) / n_all;
  return result;
}

}  // namespace cqkv::eval
