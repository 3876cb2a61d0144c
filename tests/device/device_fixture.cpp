// See device_fixture.h.
#include "device/device_fixture.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <unistd.h>

#include "cqkv/codebook_file.h"

#include "core/half.h"
#include "core/rng.h"
#include "support/codebooks.h"

namespace cqkv::device {
namespace {

template <typename Function>
Function proc(ggml_backend_reg_t registry, const char* name) {
  return reinterpret_cast<Function>(ggml_backend_reg_get_proc_address(registry, name));
}

// One row of a token: the same whatever batch it comes in.
void fill_row(float* row, int n, std::uint64_t seed, std::int32_t id, int layer, int what) {
  Rng rng(seed, (static_cast<std::uint64_t>(id) * 64 + layer) * 4 + what);
  for (int i = 0; i < n; i++) {
    row[i] = static_cast<float>(rng.normal());
  }
}

std::vector<float> rows_of(const Tokens& tokens, int n, int layer, int what) {
  std::vector<float> rows(tokens.positions.size() * n);
  const auto& ids = tokens.row_ids.empty() ? tokens.positions : tokens.row_ids;
  for (std::size_t t = 0; t < tokens.positions.size(); t++) {
    fill_row(rows.data() + t * n, n, tokens.seed, ids[t], layer, what);
  }
  return rows;
}

struct Input {
  ggml_tensor* tensor = nullptr;
  std::vector<std::uint8_t> data;
};

template <typename T>
Input make_input(ggml_tensor* tensor, const std::vector<T>& values) {
  ggml_set_input(tensor);
  Input input{tensor, std::vector<std::uint8_t>(values.size() * sizeof(T))};
  std::memcpy(input.data.data(), values.data(), input.data.size());
  return input;
}

}  // namespace

const Backend& Backend::get() {
  static const Backend backend = [] {
    Backend result;
    result.registry = ggml_backend_load(CQKV_DEVICE_PATH);
    if (result.registry != nullptr) {
      result.device = ggml_backend_reg_dev_get(result.registry, 0);
    }
    return result;
  }();
  return backend;
}

std::string Backend::set_codebook(const std::string& path) const {
  const char* error =
      proc<const char* (*)(const char*)>(registry, "cqkv_set_codebook")(path.c_str());
  return error == nullptr ? "" : error;
}

void Backend::set_window(int window, int sinks, int n_sequences, int spare) const {
  proc<void (*)(int, int, int, int)>(registry, "cqkv_set_window")(window, sinks, spare,
                                                                  n_sequences);
}

void Backend::use_byte_tables(bool wanted) const {
  proc<void (*)(int)>(registry, "cqkv_use_byte_tables")(wanted ? 1 : 0);
}

std::string Backend::last_error() const {
  return proc<const char* (*)()>(registry, "cqkv_last_error")();
}

std::uint64_t Backend::cache_bytes() const {
  return proc<std::uint64_t (*)()>(registry, "cqkv_cache_bytes")();
}

Codebook random_codebook(int n_layers, CodecSpec k, CodecSpec v, int n_kv_heads, int head_dim,
                         std::uint64_t seed) {
  Codebook codebook;
  codebook.origin.name = "random";
  codebook.origin.architecture = "llama";
  for (int layer = 0; layer < n_layers; layer++) {
    LayerCodebook sides;
    for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
      const CodecSpec spec = kind == KvKind::kKey ? k : v;
      if (spec.exact()) {
        continue;
      }
      const std::uint64_t stream = layer * 2ULL + (kind == KvKind::kKey ? 0 : 1);
      (kind == KvKind::kKey ? sides.k : sides.v)
          .push_back(testing::random_tensor(spec, n_kv_heads, head_dim, seed * 1000 + stream));
    }
    codebook.layers.push_back(std::move(sides));
  }
  return codebook;
}

std::string use_codebook(const Codebook& codebook, const std::string& name) {
  const std::string path =
      ::testing::TempDir() + "cqkv_" + std::to_string(getpid()) + "_" + name + ".gguf";
  const Status status = write_codebook(codebook, path);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(Backend::get().set_codebook(path), "");
  return path;
}

double relative_distance(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < a.size() && i < b.size(); i++) {
    difference += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    norm += static_cast<double>(b[i]) * b[i];
  }
  return std::sqrt(difference / norm);
}

Tokens run_of_tokens(int first, int n, std::uint64_t seed) {
  Tokens tokens;
  tokens.seed = seed;
  for (int i = 0; i < n; i++) {
    tokens.positions.push_back(first + i);
    tokens.cells.push_back(first + i);
  }
  return tokens;
}

TestCache::TestCache(const CacheShape& shape, int n_threads) : shape_(shape) {
  const Backend& backend = Backend::get();
  device_.reset(ggml_backend_dev_init(backend.device, nullptr));
  cpu_.reset(ggml_backend_cpu_init());
  ggml_backend_cpu_set_n_threads(cpu_.get(), n_threads);
  proc<ggml_backend_set_n_threads_t>(backend.registry, "ggml_backend_set_n_threads")(device_.get(),
                                                                                     n_threads);
  context_.reset(ggml_init({ggml_tensor_overhead() * 256, nullptr, true}));
  const int n_embd = shape.n_kv_heads * shape.head_dim;
  for (int layer = 0; layer < shape.n_layers; layer++) {
    for (const char kind : {'k', 'v'}) {
      ggml_tensor* tensor =
          ggml_new_tensor_3d(context_.get(), shape.type, n_embd, shape.n_cells, shape.n_streams);
      ggml_format_name(tensor, "cache_%c_l%d", kind, layer);
      (kind == 'k' ? k_ : v_).push_back(tensor);
    }
  }
  buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(
      context_.get(), ggml_backend_dev_buffer_type(backend.device)));
  if (buffer_ != nullptr) {
    ggml_backend_buffer_clear(buffer_.get(), 0);
  }
  cell_positions_.assign(static_cast<std::size_t>(shape.n_cells) * shape.n_streams, -1);
  cell_sequences_.assign(cell_positions_.size(), 0);
}

ggml_tensor* TestCache::attention_node(ggml_context* context, ggml_tensor* q, ggml_tensor* mask,
                                       int layer, int stream) const {
  const auto view = [&](ggml_tensor* cache) {
    const std::size_t row = cache->nb[1];
    ggml_tensor* heads = ggml_view_4d(context, cache, shape_.head_dim, shape_.n_kv_heads,
                                      shape_.n_cells, 1, row / shape_.n_kv_heads, row,
                                      row * shape_.n_cells, row * shape_.n_cells * stream);
    return ggml_permute(context, heads, 0, 2, 1, 3);
  };
  const float scale = 1.0F / std::sqrt(static_cast<float>(shape_.head_dim));
  ggml_tensor* k = view(k_[static_cast<std::size_t>(layer)]);
  ggml_tensor* v = view(v_[static_cast<std::size_t>(layer)]);
  if (shape_.flash_attention) {
    return ggml_flash_attn_ext(context, q, k, v, mask, scale, shape_.max_bias, 0.0F);
  }
  return ggml_mul_mat(context, k, q);
}

std::vector<float> TestCache::evaluate(const Tokens& tokens, int stream) {
  const auto n = static_cast<std::int64_t>(tokens.positions.size());
  for (std::int64_t t = 0; t < n; t++) {
    cell_positions_[static_cast<std::size_t>(tokens.cells[t])] = tokens.positions[t];
    cell_sequences_[static_cast<std::size_t>(tokens.cells[t])] = tokens.sequence;
  }
  ggml_context_ptr context(
      ggml_init({ggml_tensor_overhead() * 512 + ggml_graph_overhead(), nullptr, true}));
  ggml_context* c = context.get();
  std::vector<Input> inputs;
  const auto input = [&](ggml_tensor* tensor, const auto& values) {
    inputs.push_back(make_input(tensor, values));
    return tensor;
  };
  std::vector<std::uint16_t> mask(static_cast<std::size_t>(n) * shape_.n_cells);
  for (std::int64_t t = 0; t < n; t++) {
    for (int cell = 0; cell < shape_.n_cells; cell++) {
      const std::size_t row = static_cast<std::size_t>(stream) * shape_.n_cells + cell;
      const bool visible = cell_sequences_[row] == tokens.sequence && cell_positions_[row] >= 0 &&
                           cell_positions_[row] <= tokens.positions[t];
      mask[t * shape_.n_cells + cell] = float_to_half(visible ? 0.0F : -INFINITY);
    }
  }
  std::vector<std::int32_t> all_positions = tokens.positions;
  const bool in_sections = shape_.rope_mode > GGML_ROPE_TYPE_NEOX;
  if (in_sections) {  // as llama.cpp gives text
    for (int section = 1; section < 3; section++) {
      all_positions.insert(all_positions.end(), tokens.positions.begin(), tokens.positions.end());
      all_positions.back() += tokens.image ? 1 : 0;
    }
    all_positions.resize(static_cast<std::size_t>(4 * n));
  }
  ggml_tensor* positions =
      input(ggml_new_tensor_1d(c, GGML_TYPE_I32, static_cast<std::int64_t>(all_positions.size())),
            all_positions);
  ggml_tensor* cells = input(ggml_new_tensor_1d(c, GGML_TYPE_I64, n), tokens.cells);
  ggml_tensor* mask_in = input(ggml_new_tensor_2d(c, GGML_TYPE_F16, shape_.n_cells, n), mask);
  ggml_cgraph* graph = ggml_new_graph(c);
  std::vector<ggml_tensor*> outputs;
  const int n_embd = shape_.n_kv_heads * shape_.head_dim;
  for (int layer = 0; layer < shape_.n_layers; layer++) {
    const auto heads = [&](int n_heads, int what) {
      return input(ggml_new_tensor_3d(c, GGML_TYPE_F32, shape_.head_dim, n_heads, n),
                   rows_of(tokens, n_heads * shape_.head_dim, layer, what));
    };
    const auto rotate = [&](ggml_tensor* x) {
      if (in_sections) {
        int sections[4] = {16, 8, 4, 4};
        const int n_dims = shape_.head_dim / (shape_.rope_mode == GGML_ROPE_TYPE_VISION ? 2 : 1);
        return ggml_rope_multi(c, x, positions, nullptr, n_dims, sections, shape_.rope_mode, 0,
                               10000.0F, 1.0F, 0.0F, 1.0F, 32.0F, 1.0F);
      }
      return ggml_rope_ext(c, x, positions, nullptr, shape_.head_dim, shape_.rope_mode, 0, 10000.0F,
                           1.0F, 0.0F, 1.0F, 32.0F, 1.0F);
    };
    ggml_tensor* k = rotate(heads(shape_.n_kv_heads, 0));
    if (shape_.norm_after_rope) {
      k = ggml_rms_norm(c, k, 1e-6F);
    }
    ggml_tensor* v = heads(shape_.n_kv_heads, 1);
    ggml_tensor* q = ggml_permute(c, rotate(heads(shape_.n_heads, 2)), 0, 2, 1, 3);
    const auto store = [&](ggml_tensor* cache, ggml_tensor* rows) {
      ggml_tensor* all = ggml_reshape_2d(c, cache, n_embd, shape_.n_cells * shape_.n_streams);
      ggml_build_forward_expand(
          graph, ggml_set_rows(c, all, ggml_view_2d(c, rows, n_embd, n, rows->nb[2], 0), cells));
    };
    store(k_[static_cast<std::size_t>(layer)], k);
    store(v_[static_cast<std::size_t>(layer)], v);
    // A CPU node after it, as in a model, so that the output leaves the device.
    ggml_tensor* out =
        ggml_scale(c, ggml_cont(c, attention_node(c, q, mask_in, layer, stream)), 1.0F);
    ggml_set_output(out);
    ggml_build_forward_expand(graph, out);
    outputs.push_back(out);
  }
  ggml_backend_t backends[2] = {device_.get(), cpu_.get()};
  const ggml_backend_sched_ptr sched(
      ggml_backend_sched_new(backends, nullptr, 2, GGML_DEFAULT_GRAPH_SIZE, false, false));
  planned_ = ggml_backend_sched_alloc_graph(sched.get(), graph);
  if (!planned_) {
    return {};
  }
  for (const auto& given : inputs) {
    if (given.tensor->buffer == nullptr) {
      continue;  // not part of this graph
    }
    ggml_backend_tensor_set(given.tensor, given.data.data(), 0, given.data.size());
  }
  if (ggml_backend_sched_graph_compute(sched.get(), graph) != GGML_STATUS_SUCCESS) {
    return {};
  }
  std::vector<float> result;
  for (ggml_tensor* out : outputs) {
    std::vector<float> part(static_cast<std::size_t>(ggml_nelements(out)));
    ggml_backend_tensor_get(out, part.data(), 0, part.size() * sizeof(float));
    result.insert(result.end(), part.begin(), part.end());
  }
  return result;
}

bool TestCache::shift(const std::vector<std::int32_t>& shifts) {
  ggml_context_ptr context(
      ggml_init({ggml_tensor_overhead() * 64 + ggml_graph_overhead(), nullptr, true}));
  ggml_context* c = context.get();
  ggml_tensor* amount =
      ggml_new_tensor_1d(c, GGML_TYPE_I32, static_cast<std::int64_t>(shifts.size()));
  ggml_set_input(amount);
  ggml_cgraph* graph = ggml_new_graph(c);
  for (ggml_tensor* cache : k_) {
    const std::size_t row = cache->nb[1];
    ggml_tensor* view =
        ggml_view_3d(c, cache, shape_.head_dim, shape_.n_kv_heads,
                     shape_.n_cells * shape_.n_streams, row / shape_.n_kv_heads, row, 0);
    ggml_build_forward_expand(
        graph, ggml_rope_ext_inplace(c, view, amount, nullptr, shape_.head_dim, shape_.rope_mode, 0,
                                     10000.0F, 1.0F, 0.0F, 1.0F, 32.0F, 1.0F));
  }
  ggml_backend_t backends[2] = {device_.get(), cpu_.get()};
  const ggml_backend_sched_ptr sched(
      ggml_backend_sched_new(backends, nullptr, 2, GGML_DEFAULT_GRAPH_SIZE, false, false));
  if (!ggml_backend_sched_alloc_graph(sched.get(), graph)) {
    return false;
  }
  ggml_backend_tensor_set(amount, shifts.data(), 0, shifts.size() * sizeof(std::int32_t));
  if (ggml_backend_sched_graph_compute(sched.get(), graph) != GGML_STATUS_SUCCESS) {
    return false;
  }
  for (std::size_t cell = 0; cell < shifts.size(); cell++) {
    if (cell_positions_[cell] >= 0) {
      cell_positions_[cell] += shifts[cell];
    }
  }
  return true;
}

std::vector<std::uint8_t> TestCache::save(KvKind kind, int layer, int first_cell,
                                          int n_cells) const {
  const ggml_tensor* tensor = (kind == KvKind::kKey ? k_ : v_)[static_cast<std::size_t>(layer)];
  std::vector<std::uint8_t> rows(tensor->nb[1] * n_cells);
  ggml_backend_tensor_get(tensor, rows.data(), tensor->nb[1] * first_cell, rows.size());
  return rows;
}

void TestCache::restore(KvKind kind, int layer, int first_cell,
                        const std::vector<std::uint8_t>& rows) {
  ggml_tensor* tensor = (kind == KvKind::kKey ? k_ : v_)[static_cast<std::size_t>(layer)];
  ggml_backend_tensor_set(tensor, rows.data(), tensor->nb[1] * first_cell, rows.size());
}

void TestCache::copy_stream(int from, int to) {
  const ggml_context_ptr context(ggml_init({ggml_tensor_overhead() * 64, nullptr, true}));
  for (const auto* tensors : {&k_, &v_}) {
    for (ggml_tensor* tensor : *tensors) {
      const auto stream = [&](int s) {
        ggml_tensor* view = ggml_view_2d(context.get(), tensor, tensor->ne[0], tensor->ne[1],
                                         tensor->nb[1], tensor->nb[2] * s);
        ggml_backend_view_init(view);
        return view;
      };
      ggml_backend_tensor_copy(stream(from), stream(to));
    }
  }
  const auto begin = cell_positions_.begin();
  std::copy_n(begin + from * shape_.n_cells, shape_.n_cells, begin + to * shape_.n_cells);
}

void TestCache::forget(int first_cell, int n_cells) {
  std::fill_n(cell_positions_.begin() + first_cell, n_cells, -1);
}

void TestCache::clear() {
  ggml_backend_buffer_clear(buffer_.get(), 0);
  std::fill(cell_positions_.begin(), cell_positions_.end(), -1);
}

std::vector<std::uint8_t> record_of(std::span<const std::uint8_t> row) {
  std::vector<bool> bits;
  for (std::size_t at = 2; at + 1 < row.size(); at += 2) {
    const unsigned value = row[at] | static_cast<unsigned>(row[at + 1]) << 8U;
    for (const unsigned bit : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15}) {
      bits.push_back((value >> bit & 1U) != 0);
    }
  }
  std::vector<std::uint8_t> record(bits.size() / 8);
  for (std::size_t i = 0; i < 8 * record.size(); i++) {
    record[i / 8] |= static_cast<std::uint8_t>((bits[i] ? 1U : 0U) << i % 8);
  }
  return record;
}

std::vector<std::uint8_t> without_marks(const std::vector<std::uint8_t>& rows,
                                        std::size_t row_bytes) {
  std::vector<std::uint8_t> result;
  for (std::size_t first = 0; first < rows.size(); first += row_bytes) {
    std::vector<std::uint8_t> record = record_of(std::span(rows).subspan(first, row_bytes));
    std::fill_n(record.begin() + 16, 4, std::uint8_t{0});  // checksum
    std::fill_n(record.begin() + 20, 2, std::uint8_t{0});  // mark age
    result.insert(result.end(), record.begin(), record.end());
  }
  return result;
}

Tokens moved(Tokens tokens, int cells, int sequence) {
  for (auto& cell : tokens.cells) {
    cell += cells;
  }
  tokens.sequence = sequence;
  return tokens;
}

void restore_all(const TestCache& original, int n, TestCache& restored, int first_cell) {
  const auto for_each_tensor = [&](const auto& function) {
    for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
      for (int layer = 0; layer < original.shape().n_layers; layer++) {
        function(kind, layer);
      }
    }
  };
  for_each_tensor([&](KvKind kind, int layer) {
    restored.restore(kind, layer, first_cell, original.save(kind, layer, 0, n));
  });
  std::copy_n(original.positions_of_cells().begin(), n,
              restored.positions_of_cells().begin() + first_cell);
  for_each_tensor([&](KvKind kind, int layer) {
    EXPECT_EQ(restored.save(kind, layer, first_cell, n), original.save(kind, layer, 0, n))
        << kv_kind_name(kind) << "s of layer " << layer;
  });
}

void expect_batches_do_not_matter(const CacheShape& shape, int n) {
  TestCache whole(shape);
  const std::vector<float> want = whole.evaluate(run_of_tokens(0, n));
  ASSERT_FALSE(want.empty()) << Backend::get().last_error();
  const std::size_t per_token = static_cast<std::size_t>(shape.n_heads) * shape.head_dim;
  for (const int step : {1, 7, 64, 150}) {
    for (const int n_threads : {1, 3, 11}) {
      TestCache cache(shape, n_threads);
      for (int first = 0; first < n; first += step) {
        const int count = std::min(step, n - first);
        const std::vector<float> part = cache.evaluate(run_of_tokens(first, count));
        ASSERT_EQ(part.size(), shape.n_layers * count * per_token);
        for (int layer = 0; layer < shape.n_layers; layer++) {
          const auto got = part.begin() + static_cast<std::ptrdiff_t>(layer * count * per_token);
          const auto expected =
              want.begin() + static_cast<std::ptrdiff_t>((layer * n + first) * per_token);
          ASSERT_TRUE(
              std::equal(got, got + static_cast<std::ptrdiff_t>(count * per_token), expected))
              << "batches of " << step << ", " << n_threads << " threads, layer " << layer
              << ", token " << first;
        }
      }
      for (int layer = 0; layer < shape.n_layers; layer++) {
        for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
          const std::size_t row_bytes = cache.save(kind, layer, 0, 1).size();
          ASSERT_EQ(without_marks(cache.save(kind, layer, 0, n), row_bytes),
                    without_marks(whole.save(kind, layer, 0, n), row_bytes));
        }
      }
    }
  }
}

}  // namespace cqkv::device
