// See device_driver.h.
#include "device/device_driver.h"

#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpp.h>
#include <unistd.h>

#include "cqkv/codebook_file.h"

#include "device/codebook_library.h"
#include "device/graph_ops.h"
#include "device/kv_buffer.h"
#include "support/strict_parallel.h"

namespace cqkv::testing {
namespace {

using device::GraphScratch;
using device::KvBuffer;

constexpr int kLayers = kModelLayers;

// Tensors of one evaluation of n tokens on a stream, made once and filled for each.
struct Graph {
  ggml_context_ptr context;
  ggml_backend_buffer_ptr buffer;
  ggml_tensor* positions = nullptr;
  ggml_tensor* cells = nullptr;
  ggml_tensor* mask = nullptr;
  ggml_tensor* queries = nullptr;  // [head_dim, heads, n], before the permutation
  std::array<ggml_tensor*, kLayers> rotated{};
  std::array<ggml_tensor*, kLayers> values{};
  std::array<ggml_tensor*, kLayers> store_keys{};
  std::array<ggml_tensor*, kLayers> store_values{};
  std::array<ggml_tensor*, kLayers> attend{};
};

ggml_tensor* rope_node(ggml_context* context, ggml_tensor* x, ggml_tensor* positions) {
  RopeParams p;
  return ggml_rope_ext(context, x, positions, nullptr, kModelHeadDim, GGML_ROPE_TYPE_NEOX, 0,
                       p.freq_base, p.freq_scale, p.ext_factor, p.attn_factor, p.beta_fast,
                       p.beta_slow);
}

void set_library(const Codebook& codebook, int pool_sequences) {
  std::string path = "/tmp/cqkv_device_driver_XXXXXX";
  const int file = mkstemp(path.data());
  close(file);
  if (!write_codebook(codebook, path).ok()) {
    std::abort();
  }
  device::set_window_choice({.window = {}, .n_sequences = pool_sequences});
  device::set_byte_tables(false);
  device::set_current_library(*device::CodebookLibrary::load(path.c_str()));
  unlink(path.c_str());
}

class DeviceDriver final : public CacheDriver {
 public:
  DeviceDriver(const Codebook& codebook, int n_streams, int pool_sequences)
      : n_streams_(n_streams) {
    set_library(codebook, pool_sequences);
    make_cache();
    make_shift();
  }

  // The graph is made before anything may fail.
  void begin(const ModelStep& step) override {
    const auto n = static_cast<int>(step.cells.size());
    const auto [entry, fresh] = graphs_.try_emplace({step.stream, n});
    if (fresh) {
      entry->second = make_graph(step.stream, n);
    }
    graph_ = &entry->second;
    auto* cells = static_cast<std::int64_t*>(graph_->cells->data);
    for (std::size_t i = 0; i < step.cells.size(); i++) {
      cells[i] = static_cast<std::int64_t>(step.cells[i]);
    }
    fill(graph_->positions, step.positions.data());
    fill(graph_->mask, step.mask.data());
    fill(graph_->queries, step.queries.data());
  }

  Status store_keys(int layer, const float* rows) override {
    fill(graph_->rotated[layer], rows);
    return run(graph_->store_keys[layer]);
  }

  Status store_values(int layer, const float* rows) override {
    fill(graph_->values[layer], rows);
    return run(graph_->store_values[layer]);
  }

  Status attend(int layer) override { return run(graph_->attend[layer]); }

  void end() override { kv_->settle(); }

  const float* out(int layer) const override {
    return static_cast<const float*>(graph_->attend[layer]->data);
  }

  Status shift(std::span<const std::int32_t> amounts) override {
    fill(shift_amount_, amounts.data());
    for (ggml_tensor* node : shift_nodes_) {
      const Status status = run(node);
      if (!status.ok()) {
        return status;
      }
    }
    return {};
  }

  void copy_stream(KvKind kind, int layer, int from, int to) override {
    ggml_tensor* tensor = cache(kind, layer);
    const auto stream = [&](int s) {
      ggml_tensor* view = &views_[static_cast<std::size_t>(s)];
      *view = *tensor;
      view->view_src = tensor;
      view->view_offs = tensor->nb[2] * static_cast<std::size_t>(s);
      view->ne[2] = 1;
      view->nb[3] = view->nb[2];
      return view;
    };
    ggml_backend_tensor_copy(stream(from), stream(to));
  }

  std::size_t row_bytes() const override { return cache(KvKind::kKey, 0)->nb[1]; }

  void read_row(KvKind kind, int layer, std::size_t cell, std::span<std::uint8_t> row) override {
    ggml_backend_tensor_get(cache(kind, layer), row.data(), cell * row.size(), row.size());
  }

  void write_row(KvKind kind, int layer, std::size_t cell,
                 std::span<const std::uint8_t> row) override {
    ggml_backend_tensor_set(cache(kind, layer), row.data(), cell * row.size(), row.size());
  }

  void clear() override { ggml_backend_buffer_clear(buffer_.get(), 0); }

  const ExactWindow& window() const override { return kv_->cache()->window(); }

 private:
  template <typename T>
  static void fill(ggml_tensor* tensor, const T* data) {
    std::memcpy(tensor->data, data, ggml_nbytes(tensor));
  }

  Status run(ggml_tensor* node) { return device::run_coded(node, parallel_, scratch_); }

  ggml_tensor* cache(KvKind kind, int layer) const {
    return (kind == KvKind::kKey ? k_ : v_)[static_cast<std::size_t>(layer)];
  }

  void make_cache() {
    context_.reset(ggml_init({ggml_tensor_overhead() * 64, nullptr, true}));
    for (int layer = 0; layer < kLayers; layer++) {
      for (const char kind : {'k', 'v'}) {
        ggml_tensor* tensor = ggml_new_tensor_3d(context_.get(), GGML_TYPE_F16, kModelChannels,
                                                 kModelCells, n_streams_);
        ggml_format_name(tensor, "cache_%c_l%d", kind, layer);
        (kind == 'k' ? k_ : v_)[static_cast<std::size_t>(layer)] = tensor;
      }
    }
    buffer_.reset(
        ggml_backend_alloc_ctx_tensors_from_buft(context_.get(), device::kv_buffer_type(nullptr)));
    kv_ = &device::buffer_of(k_[0]);
  }

  Graph make_graph(int stream, int n) const {
    Graph graph;
    graph.context.reset(ggml_init({ggml_tensor_overhead() * 256, nullptr, true}));
    ggml_context* c = graph.context.get();
    graph.positions = ggml_new_tensor_1d(c, GGML_TYPE_I32, n);
    graph.cells = ggml_new_tensor_1d(c, GGML_TYPE_I64, n);
    graph.mask = ggml_new_tensor_2d(c, GGML_TYPE_F16, kModelCells, n);
    graph.queries = ggml_new_tensor_3d(c, GGML_TYPE_F32, kModelHeadDim, kModelHeads, n);
    for (int layer = 0; layer < kLayers; layer++) {
      const auto store = [&](ggml_tensor* cache, ggml_tensor* rows) {
        ggml_tensor* all = ggml_reshape_2d(c, cache, kModelChannels, kModelCells * n_streams_);
        return ggml_set_rows(c, all, ggml_view_2d(c, rows, kModelChannels, n, rows->nb[2], 0),
                             graph.cells);
      };
      const auto view = [&](ggml_tensor* cache) {
        const std::size_t row = cache->nb[1];
        return ggml_permute(
            c,
            ggml_view_4d(c, cache, kModelHeadDim, kModelKvHeads, kModelCells, 1,
                         row / kModelKvHeads, row, row * kModelCells, row * kModelCells * stream),
            0, 2, 1, 3);
      };
      ggml_tensor* plain = ggml_new_tensor_3d(c, GGML_TYPE_F32, kModelHeadDim, kModelKvHeads, n);
      graph.rotated[layer] = rope_node(c, plain, graph.positions);
      graph.values[layer] = ggml_new_tensor_3d(c, GGML_TYPE_F32, kModelHeadDim, kModelKvHeads, n);
      graph.store_keys[layer] = store(k_[layer], graph.rotated[layer]);
      graph.store_values[layer] = store(v_[layer], graph.values[layer]);
      graph.attend[layer] = ggml_flash_attn_ext(
          c, ggml_permute(c, graph.queries, 0, 2, 1, 3), view(k_[layer]), view(v_[layer]),
          graph.mask, 1.0F / std::sqrt(static_cast<float>(kModelHeadDim)), 0.0F, 0.0F);
    }
    graph.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(c, ggml_backend_cpu_buffer_type()));
    return graph;
  }

  void make_shift() {
    shift_context_.reset(ggml_init({ggml_tensor_overhead() * 64, nullptr, true}));
    ggml_context* c = shift_context_.get();
    shift_amount_ = ggml_new_tensor_1d(c, GGML_TYPE_I32, kModelCells * n_streams_);
    for (int layer = 0; layer < kLayers; layer++) {
      const std::size_t row = k_[layer]->nb[1];
      ggml_tensor* view = ggml_view_3d(c, k_[layer], kModelHeadDim, kModelKvHeads,
                                       kModelCells * n_streams_, row / kModelKvHeads, row, 0);
      shift_nodes_[layer] =
          ggml_rope_ext_inplace(c, view, shift_amount_, nullptr, kModelHeadDim, GGML_ROPE_TYPE_NEOX,
                                0, 10000.0F, 1.0F, 0.0F, 1.0F, 32.0F, 1.0F);
    }
    shift_buffer_.reset(
        ggml_backend_alloc_ctx_tensors_from_buft(c, ggml_backend_cpu_buffer_type()));
  }

  int n_streams_;
  ggml_context_ptr context_;
  ggml_backend_buffer_ptr buffer_;
  KvBuffer* kv_ = nullptr;
  std::array<ggml_tensor*, kLayers> k_{};
  std::array<ggml_tensor*, kLayers> v_{};
  std::map<std::pair<int, int>, Graph> graphs_;  // by stream and number of tokens
  Graph* graph_ = nullptr;
  ggml_context_ptr shift_context_;
  ggml_backend_buffer_ptr shift_buffer_;
  ggml_tensor* shift_amount_ = nullptr;
  std::array<ggml_tensor*, kLayers> shift_nodes_{};
  std::array<ggml_tensor, 2> views_{};
  StrictParallelFor parallel_;
  GraphScratch scratch_;
};

}  // namespace

std::unique_ptr<CacheDriver> make_device_driver(const Codebook& codebook, int n_streams,
                                                int pool_sequences) {
  return std::make_unique<DeviceDriver>(codebook, n_streams, pool_sequences);
}

}  // namespace cqkv::testing
