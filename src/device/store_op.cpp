// See store_op.h. What arrives in which tensor is in docs/architecture.md, "What the
// device sees".
#include "device/store_op.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "core/hash.h"
#include "device/kv_buffer.h"
#include "device/nodes.h"
#include "graph/cache_store.h"
#include "graph/rope_node.h"

namespace cqkv::device {
namespace {

// Compares the fingerprint of the layer's norm with the codebook's, once a layer.
Status verify_model(CodedTensor& tensor, const ggml_tensor* rows) {
  const auto& origin = tensor.book->codebook.origin;
  const auto layer = static_cast<std::size_t>(tensor.name.layer);
  if (tensor.verified || layer >= origin.model_fingerprint.size() ||
      origin.model_fingerprint[layer] == 0) {
    return {};
  }
  const std::string name = fingerprint_weight(tensor.name.layer);
  const ggml_tensor* weight = find_source(rows, name);
  if (weight == nullptr || weight->data == nullptr || weight->buffer == nullptr) {
    return {};  // not visible in this graph
  }
  std::vector<std::uint8_t> bytes(ggml_nbytes(weight));
  ggml_backend_tensor_get(weight, bytes.data(), 0, bytes.size());
  if (hash_bytes(bytes.data(), bytes.size()) != origin.model_fingerprint[layer]) {
    return {StatusCode::kMismatch, "codebook " + tensor.book->path + " was learned on model '" +
                                       origin.model_name + "', but the weight " + name +
                                       " of the model being run differs; use the codebook "
                                       "of this model or make one with cqkv calibrate"};
  }
  tensor.verified = true;
  return {};
}

// ---- Storing ---------------------------------------------------------------

std::int64_t cell_of(const ggml_tensor* index, std::int64_t i) {
  const char* at = static_cast<const char*>(index->data) + i * index->nb[0];
  if (index->type == GGML_TYPE_I64) {
    std::int64_t value = 0;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  std::int32_t value = 0;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

void compute_angles(PositionBatch& batch, const RopeParams& params) {
  const std::size_t half = static_cast<std::size_t>(params.n_dims) / 2;
  batch.rope = params;
  batch.cosines.resize(batch.positions.size() * half);
  batch.sines.resize(batch.positions.size() * half);
  for (std::size_t t = 0; t < batch.positions.size(); t++) {
    rope_row_ggml(params, batch.positions[t], batch.cosines.data() + t * half,
                  batch.sines.data() + t * half);
  }
}

// The positions of the n tokens that a ROPE node rotates. A token may have one only, but those of
// an image have more in a rotation in sections.
Status read_positions(const ggml_tensor* node, std::size_t n,
                      std::vector<std::int32_t>& positions) {
  const ggml_tensor* source = node->src[1];
  positions.resize(n);
  ggml_backend_tensor_get(source, positions.data(), 0, n * sizeof(std::int32_t));
  if (!has_sections(node)) {
    return {};
  }
  std::vector<std::int32_t> other(n);
  for (std::size_t i = 1; i < 4; i++) {
    ggml_backend_tensor_get(source, other.data(), i * n * sizeof(std::int32_t),
                            n * sizeof(std::int32_t));
    if (other != (i < 3 ? positions : std::vector<std::int32_t>(n))) {
      return unsupported(
          "a token has several positions, as those of images have; coded keys can be rotated by "
          "one only: run with exact keys (--config-k exact)");
    }
  }
  return {};
}

// Takes the graph's positions if this is the first rotated key layer of the buffer,
// and makes sure that the batch's angles are those of this layer.
Status begin_keys(KvBuffer& buffer, CodedTensor& tensor, CacheStore& store,
                  std::span<const std::size_t> cells) {
  if (buffer.position_owner() == nullptr) {
    buffer.set_position_owner(&tensor);
  }
  PositionBatch& batch = buffer.batch();
  bool fresh = false;
  if (buffer.position_owner() == &tensor) {
    CQKV_RETURN_IF_ERROR(read_positions(store.rotation, cells.size(), batch.positions));
    buffer.begin_tokens(batch.positions, cells);
    fresh = true;
  }
  if (batch.positions.size() != cells.size()) {
    return {StatusCode::kInternal, "layer " + std::to_string(tensor.name.layer) + " stores " +
                                       std::to_string(cells.size()) +
                                       " keys, the first layer stored " +
                                       std::to_string(batch.positions.size())};
  }
  if (fresh || !(batch.rope == store.rope)) {
    compute_angles(batch, store.rope);
  }
  tensor.rope = std::move(store.rope);
  return {};
}

constexpr int kChunk = 16;  // tokens that one thread works on

// From `first` on.
struct TokenChunk {
  std::size_t first;
  std::size_t n;
};

TokenChunk chunk_at(int chunk, std::int64_t n_tokens) {
  const std::int64_t first = static_cast<std::int64_t>(chunk) * kChunk;
  return {static_cast<std::size_t>(first),
          static_cast<std::size_t>(std::min<std::int64_t>(kChunk, n_tokens - first))};
}

// Rows as they are coded: before the rotation, as components. `channels` has room for one row.
void take_rows(const CodedTensor& tensor, const ggml_tensor* rows, const PositionBatch* batch,
               TokenChunk chunk, float* channels, float* out) {
  const auto n_channels = static_cast<std::size_t>(tensor.codebook->n_channels());
  const bool plain = tensor.codebook->basis().plain();
  for (std::size_t t = chunk.first; t < chunk.first + chunk.n; t++) {
    float* row = plain ? out + t * n_channels : channels;
    std::memcpy(row, static_cast<const char*>(rows->data) + t * rows->nb[1],
                n_channels * sizeof(float));
    if (batch != nullptr) {
      const std::size_t half = static_cast<std::size_t>(tensor.rope.n_dims) / 2;
      rope_inverse(tensor.rope, batch->cosines.data() + t * half, batch->sines.data() + t * half,
                   tensor.codebook->n_kv_heads(), tensor.codebook->head_dim(), row);
    }
    if (!plain) {
      tensor.codebook->basis().to_components(row, out + t * n_channels);
    }
  }
}

// `decoded` has room for one row.
void write_exact_rows(const CodedTensor& tensor, const GraphScratch& scratch, TokenChunk chunk,
                      float* decoded, std::uint8_t* exact) {
  const auto n_channels = static_cast<std::size_t>(tensor.codebook->n_channels());
  const auto n_codes = static_cast<std::size_t>(tensor.layout.n_codes());
  for (std::size_t t = chunk.first; t < chunk.first + chunk.n; t++) {
    tensor.codebook->decode_components(scratch.codes.data() + t * n_codes, 1, decoded, n_channels);
    write_exact_row(tensor.exact, scratch.rows.data() + t * n_channels, decoded,
                    exact + t * tensor.exact.row_bytes());
  }
}

// Codes of all rows into scratch.codes and, unless `exact` is null, what the codes lose. Threads
// share the tokens, and where these are few, as in generation, the groups: the centroids of a
// token's groups are megabytes over all layers.
void encode_rows(const CodedTensor& tensor, const ggml_tensor* rows, const PositionBatch* batch,
                 std::uint8_t* exact, ParallelFor& parallel, GraphScratch& scratch) {
  const std::int64_t n_tokens = rows->ne[1];
  const auto n_channels = static_cast<std::size_t>(tensor.codebook->n_channels());
  const int n_codes = tensor.layout.n_codes();
  scratch.rows.resize(static_cast<std::size_t>(n_tokens) * n_channels);
  scratch.codes.resize(static_cast<std::size_t>(n_tokens) * n_codes);
  // Here, since tasks must not throw.
  scratch.decoded.resize(static_cast<std::size_t>(parallel.n_threads()) * n_channels);
  const auto n_chunks = static_cast<int>((n_tokens + kChunk - 1) / kChunk);
  parallel.run(n_chunks, [&](int chunk, int thread) {
    take_rows(tensor, rows, batch, chunk_at(chunk, n_tokens),
              scratch.decoded.data() + static_cast<std::size_t>(thread) * n_channels,
              scratch.rows.data());
  });
  const int n_parts = n_chunks == 0 ? 1 : (parallel.n_threads() + n_chunks - 1) / n_chunks;
  parallel.run(n_chunks * n_parts, [&](int task, int) {
    const TokenChunk chunk = chunk_at(task / n_parts, n_tokens);
    const int first = n_codes * (task % n_parts) / n_parts;
    const int end = n_codes * (task % n_parts + 1) / n_parts;
    tensor.codebook->encode_groups(
        scratch.rows.data() + chunk.first * n_channels, chunk.n, n_channels, first, end - first,
        scratch.codes.data() + chunk.first * static_cast<std::size_t>(n_codes));
  });
  if (exact == nullptr) {
    return;
  }
  parallel.run(n_chunks, [&](int chunk, int thread) {
    write_exact_rows(tensor, scratch, chunk_at(chunk, n_tokens),
                     scratch.decoded.data() + static_cast<std::size_t>(thread) * n_channels, exact);
  });
}

Status read_cells(const ggml_tensor* node, const CodedTensor& tensor,
                  std::vector<std::size_t>& cells) {
  const ggml_tensor* index = node->src[1];
  cells.clear();
  for (std::int64_t t = 0; t < node->src[0]->ne[1]; t++) {
    const std::int64_t cell = cell_of(index, t);
    if (cell < 0 || static_cast<std::size_t>(cell) >= tensor.n_cells) {
      return {StatusCode::kInternal, node_text(node) + ": cell " + std::to_string(cell) +
                                         " of a cache of " + std::to_string(tensor.n_cells)};
    }
    cells.push_back(static_cast<std::size_t>(cell));
  }
  return {};
}

}  // namespace

Status check_store(const ggml_tensor* node) {
  const ggml_tensor* index = node->src[1];
  CodedTensor& tensor = *buffer_of(node).coded(node);
  tensor.n_views = 0;
  if (node->ne[0] != tensor.codebook->n_channels()) {
    return unsupported(node_text(node) + " stores rows of " + std::to_string(node->ne[0]) +
                       " values, want " + std::to_string(tensor.codebook->n_channels()) +
                       ": coded caches need flash attention; run with -fa on");
  }
  if (index->type != GGML_TYPE_I64 && index->type != GGML_TYPE_I32) {
    return unsupported(node_text(node) + ": cells of type " + ggml_type_name(index->type) +
                       ", want i64 or i32; run without a codebook");
  }
  const Result<CacheStore> store = read_cache_store(node);
  if (!store.ok()) {
    return store.status();
  }
  CQKV_RETURN_IF_ERROR(verify_model(tensor, store->rows));
  if (store->rotation != nullptr && store->head_dim != tensor.codebook->head_dim()) {
    return {StatusCode::kMismatch, "codebook " + tensor.book->path + ": head size " +
                                       std::to_string(tensor.codebook->head_dim()) +
                                       ", the model's is " + std::to_string(store->head_dim)};
  }
  return {};
}

Status run_store(ggml_tensor* node, ParallelFor& parallel, GraphScratch& scratch) {
  KvBuffer& buffer = buffer_of(node);
  CodedTensor& tensor = *buffer.coded(node);
  CQKV_RETURN_IF_ERROR(read_cells(node, tensor, scratch.cells));
  Result<CacheStore> store = read_cache_store(node);
  if (!store.ok()) {
    return store.status();
  }
  tensor.rotated = store->rotation != nullptr;
  if (tensor.rotated) {
    CQKV_RETURN_IF_ERROR(begin_keys(buffer, tensor, *store, scratch.cells));
  }
  std::uint8_t* exact =
      buffer.uses_window(tensor) ? buffer.begin_exact_rows(tensor, scratch.cells.size()) : nullptr;
  encode_rows(tensor, store->rows, tensor.rotated ? &buffer.batch() : nullptr, exact, parallel,
              scratch);
  const auto n_codes = static_cast<std::size_t>(tensor.layout.n_codes());
  for (std::size_t t = 0; t < scratch.cells.size(); t++) {
    put_codes(tensor.layout, tensor.codes, scratch.cells[t], scratch.codes.data() + t * n_codes);
    buffer.cells().occupy(scratch.cells[t]);
  }
  return {};
}

}  // namespace cqkv::device
