// ggml's attention of the operator benchmark (bench_attend.h): a graph with the views, the
// permutations and the one node that llama.cpp builds for a layer with flash attention.
#include <cmath>
#include <cstring>

#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include "bench_attend.h"

namespace cqkv::app {
namespace {

Result<ggml_type> type_of(const std::string& name, int head_dim) {
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
    if (name != ggml_type_name(type)) {
      continue;
    }
    if (head_dim % ggml_blck_size(type) != 0) {
      return invalid_argument("--head-dim: got " + std::to_string(head_dim) +
                              ", want a multiple of " + std::to_string(ggml_blck_size(type)) +
                              " for the type " + name);
    }
    return type;
  }
  return invalid_argument("--type: got " + name + ", want f32, f16, q8_0 or q4_0");
}

// The heads of a cache [n_channels, cells, streams] as attention reads them: [head_dim, cells,
// n_kv_heads, streams].
ggml_tensor* heads_of(ggml_context* context, ggml_tensor* cache, const BenchShape& shape) {
  ggml_tensor* view =
      ggml_view_4d(context, cache, shape.head_dim, shape.n_kv_heads, cache->ne[1], cache->ne[2],
                   ggml_row_size(cache->type, shape.head_dim), cache->nb[1], cache->nb[2], 0);
  return ggml_permute(context, view, 0, 2, 1, 3);
}

// The queries [head_dim, n_heads, queries of all streams] likewise.
ggml_tensor* heads_of_queries(ggml_context* context, ggml_tensor* q, const BenchShape& shape) {
  ggml_tensor* view =
      ggml_view_4d(context, q, shape.head_dim, shape.n_heads(), shape.stream_queries(),
                   shape.n_streams(), q->nb[1], q->nb[2], q->nb[2] * shape.stream_queries(), 0);
  return ggml_permute(context, view, 0, 2, 1, 3);
}

}  // namespace

struct GgmlAttention::Graph {
  struct Free {
    void operator()(ggml_context* context) const { ggml_free(context); }

    void operator()(ggml_backend* backend) const { ggml_backend_free(backend); }

    void operator()(ggml_backend_buffer* buffer) const { ggml_backend_buffer_free(buffer); }
  };

  std::unique_ptr<ggml_context, Free> context;
  std::unique_ptr<ggml_backend, Free> backend;
  std::unique_ptr<ggml_backend_buffer, Free> buffer;
  ggml_cgraph* graph = nullptr;
  ggml_tensor* queries = nullptr;  // [head_dim, n_heads, queries of all streams]
  ggml_tensor* keys = nullptr;     // [n_channels, cells, streams]
  ggml_tensor* values = nullptr;
  ggml_tensor* mask = nullptr;  // [cells, queries, 1, streams]
  ggml_tensor* out = nullptr;   // [head_dim, n_heads, queries, streams]

  void build(const BenchShape& shape, ggml_type type);

  Status allocate();
};

void GgmlAttention::Graph::build(const BenchShape& shape, ggml_type type) {
  constexpr std::size_t kTensors = 32;
  context.reset(ggml_init(
      {kTensors * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, /*no_alloc=*/true}));
  queries = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, shape.head_dim, shape.n_heads(),
                               shape.stream_queries() * shape.n_streams());
  keys = ggml_new_tensor_3d(context.get(), type, shape.n_channels(), shape.stream_cells(),
                            shape.n_streams());
  values = ggml_new_tensor_3d(context.get(), type, shape.n_channels(), shape.stream_cells(),
                              shape.n_streams());
  mask = ggml_new_tensor_4d(context.get(), GGML_TYPE_F16, shape.stream_cells(),
                            shape.stream_queries(), 1, shape.n_streams());
  out = ggml_flash_attn_ext(context.get(), heads_of_queries(context.get(), queries, shape),
                            heads_of(context.get(), keys, shape),
                            heads_of(context.get(), values, shape), mask,
                            1.0F / std::sqrt(static_cast<float>(shape.head_dim)), 0.0F, 0.0F);
  ggml_prec_set_acc(out, GGML_PREC_F32);
  graph = ggml_new_graph(context.get());
  ggml_build_forward_expand(graph, out);
}

Status GgmlAttention::Graph::allocate() {
  backend.reset(ggml_backend_cpu_init());
  if (backend != nullptr) {
    buffer.reset(ggml_backend_alloc_ctx_tensors(context.get(), backend.get()));
  }
  return buffer != nullptr ? Status()
                           : Status(StatusCode::kResourceExhausted,
                                    std::string("no memory for a cache of ") +
                                        std::to_string(ggml_nbytes(keys) + ggml_nbytes(values)) +
                                        " bytes of " + ggml_type_name(keys->type));
}

GgmlAttention::GgmlAttention(const BenchShape& shape, const BenchInputs& inputs)
    : shape_(shape), inputs_(inputs), graph_(std::make_unique<Graph>()) {
}

GgmlAttention::~GgmlAttention() = default;

Status GgmlAttention::check_type(const std::string& type, int head_dim) {
  return type_of(type, head_dim).status();
}

Result<std::unique_ptr<GgmlAttention>> GgmlAttention::create(const BenchShape& shape,
                                                             const BenchInputs& inputs,
                                                             const std::string& type) {
  const auto ggml_type = type_of(type, shape.head_dim);
  if (!ggml_type.ok()) {
    return ggml_type.status();
  }
  std::unique_ptr<GgmlAttention> result(new GgmlAttention(shape, inputs));
  Graph& graph = *result->graph_;
  graph.build(shape, *ggml_type);
  CQKV_RETURN_IF_ERROR(graph.allocate());
  ggml_backend_tensor_set(graph.queries, inputs.queries.data(), 0, ggml_nbytes(graph.queries));
  ggml_backend_tensor_set(graph.mask, inputs.mask.data(), 0, ggml_nbytes(graph.mask));
  return result;
}

void GgmlAttention::fill(const BenchCodes& codes) {
  const RopeParams params = bench_rope(shape_);
  RopeTable rope(params);
  rope.reserve(shape_.first_position + shape_.n_tokens);
  std::vector<float> row(static_cast<std::size_t>(shape_.n_channels()));
  std::vector<float> cosines(static_cast<std::size_t>(shape_.head_dim) / 2);
  std::vector<float> sines(cosines.size());
  const auto put = [&](ggml_tensor* cache, int stream, int cell) {
    char* at = static_cast<char*>(cache->data) + stream * cache->nb[2] + cell * cache->nb[1];
    ggml_quantize_chunk(cache->type, row.data(), at, 0, 1, shape_.n_channels(), nullptr);
  };
  for (int stream = 0; stream < shape_.n_streams(); stream++) {
    for (int cell = 0; cell < shape_.stream_cells(); cell++) {
      codes.decode(KvKind::kKey, stream, cell, row.data());
      rope.row(inputs_.positions[static_cast<std::size_t>(cell)], cosines.data(), sines.data());
      rope_forward(params, cosines.data(), sines.data(), shape_.n_kv_heads, shape_.head_dim,
                   row.data());
      put(graph_->keys, stream, cell);
      codes.decode(KvKind::kValue, stream, cell, row.data());
      put(graph_->values, stream, cell);
    }
  }
}

std::string GgmlAttention::type() const {
  return ggml_type_name(graph_->keys->type);
}

std::size_t GgmlAttention::cache_bytes() const {
  return ggml_nbytes(graph_->keys) + ggml_nbytes(graph_->values);
}

void GgmlAttention::set_n_threads(int n_threads) {
  ggml_backend_cpu_set_n_threads(graph_->backend.get(), n_threads);
}

Status GgmlAttention::run() {
  const ggml_status status = ggml_backend_graph_compute(graph_->backend.get(), graph_->graph);
  return status == GGML_STATUS_SUCCESS
             ? Status()
             : Status(StatusCode::kInternal,
                      std::string("ggml's attention: ") + ggml_status_to_string(status));
}

const float* GgmlAttention::out() const {
  return static_cast<const float*>(graph_->out->data);
}

}  // namespace cqkv::app
