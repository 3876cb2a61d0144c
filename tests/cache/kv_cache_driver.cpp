// See kv_cache_driver.h.
#include "cache/kv_cache_driver.h"

#include <array>
#include <cmath>
#include <cstdlib>

#include "cache/kv_cache.h"
#include "support/strict_parallel.h"

namespace cqkv::testing {
namespace {

class KvCacheDriver final : public CacheDriver {
 public:
  KvCacheDriver(const Codebook& codebook, const CacheOptions& options) : cache_(options) {
    rope_.n_dims = kModelHeadDim;
    rope_.mode = RopeMode::kNeox;
    const std::uint64_t identity = codebook.identity();
    for (int layer = 0; layer < kModelLayers; layer++) {
      for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
        const Status added = cache_.add({.kind = kind,
                                         .layer = layer,
                                         .codebook = codebook.layers[layer].get(kind),
                                         .identity = identity,
                                         .row_bytes = row_bytes()});
        if (!added.ok()) {
          std::abort();
        }
      }
    }
  }

  void begin(const ModelStep& step) override {
    step_ = &step;
    for (auto& out : out_) {
      out.resize(step.queries.size());
    }
  }

  Status store_keys(int layer, const float* rows) override {
    return kept([&]() -> Status {
      if (layer == 0) {
        CQKV_RETURN_IF_ERROR(cache_.plan({step_->positions, step_->cells}));
      }
      return cache_.store_keys(layer, rows_of(rows), step_->cells, &rope_, parallel_, workspace_);
    });
  }

  Status store_values(int layer, const float* rows) override {
    return kept([&] {
      return cache_.store_values(layer, rows_of(rows), step_->cells, parallel_, workspace_);
    });
  }

  Status attend(int layer) override {
    StreamAttention stream;
    stream.first_cell = static_cast<std::size_t>(step_->stream) * kModelCells;
    AttentionCall& call = stream.call;
    call.n_heads = kModelHeads;
    call.n_kv_heads = kModelKvHeads;
    call.head_dim_k = call.head_dim_v = kModelHeadDim;
    call.n_queries = static_cast<int>(step_->cells.size());
    call.n_cells = kModelCells;
    call.scale = 1.0F / std::sqrt(static_cast<float>(kModelHeadDim));
    call.queries = reinterpret_cast<const std::uint8_t*>(step_->queries.data());
    call.query_head_bytes = kModelHeadDim * sizeof(float);
    call.query_bytes = kModelHeads * call.query_head_bytes;
    call.mask = reinterpret_cast<const std::uint8_t*>(step_->mask.data());
    call.mask_bytes = kModelCells * sizeof(std::uint16_t);
    call.out = reinterpret_cast<std::uint8_t*>(out_[layer].data());
    call.out_head_bytes = call.query_head_bytes;
    call.out_bytes = call.query_bytes;
    return kept([&] { return cache_.attend(layer, {&stream, 1}, parallel_, workspace_); });
  }

  void end() override {
    if (cache_.in_step()) {
      (void)cache_.commit();
    }
  }

  const float* out(int layer) const override { return out_[layer].data(); }

  Status shift(std::span<const std::int32_t> amounts) override { return cache_.shift(0, amounts); }

  void copy_stream(KvKind kind, int layer, int from, int to) override {
    const auto first = [](int stream) { return static_cast<std::size_t>(stream) * kModelCells; };
    (void)cache_.copy(kind, layer, first(from), first(to), kModelCells);
  }

  std::size_t row_bytes() const override { return kModelChannels * sizeof(std::uint16_t); }

  void read_row(KvKind kind, int layer, std::size_t cell, std::span<std::uint8_t> row) override {
    (void)cache_.read_rows(kind, layer, cell, row);
  }

  void write_row(KvKind kind, int layer, std::size_t cell,
                 std::span<const std::uint8_t> row) override {
    (void)cache_.write_rows(kind, layer, cell, row);
  }

  void clear() override { cache_.clear(); }

  const ExactWindow& window() const override { return cache_.window(); }

 private:
  static TokenRows rows_of(const float* rows) {
    return {reinterpret_cast<const std::uint8_t*>(rows), kModelChannels * sizeof(float)};
  }

  // A failure ends the step.
  template <typename Function>
  Status kept(const Function& function) {
    Status status = function();
    if (!status.ok()) {
      cache_.abandon();
    }
    return status;
  }

  KvCache cache_;
  RopeParams rope_;
  StrictParallelFor parallel_;
  CacheWorkspace workspace_;
  const ModelStep* step_ = nullptr;
  std::array<std::vector<float>, kModelLayers> out_;
};

}  // namespace

std::unique_ptr<CacheDriver> make_kv_cache_driver(const Codebook& codebook, int n_streams,
                                                  int pool_sequences) {
  CacheOptions options;
  options.n_streams = static_cast<std::size_t>(n_streams);
  options.cells_per_stream = kModelCells;
  options.window = kModelWindow;
  options.pool = window_pool(kModelWindow, codebook, kModelCells,
                             static_cast<std::size_t>(n_streams > 1 ? 1 : pool_sequences));
  options.byte_tables = false;
  return std::make_unique<KvCacheDriver>(codebook, options);
}

}  // namespace cqkv::testing
