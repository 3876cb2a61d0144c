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

// The first rotated key layer of the buffer begins a step, with the graph's positions: its own
// position tensor may be overwritten after its last use.
Status begin_step(KvBuffer& buffer, const CodedTensor& tensor, const CacheStore& store,
                  GraphScratch& scratch) {
  if (buffer.position_owner() == nullptr) {
    buffer.set_position_owner(&tensor);
  }
  if (buffer.position_owner() != &tensor) {
    return {};
  }
  CQKV_RETURN_IF_ERROR(read_positions(store.rotation, scratch.cells.size(), scratch.positions));
  buffer.settle();
  buffer.begin_step();
  return buffer.cache()->plan({scratch.positions, scratch.cells, tensor.name.layer});
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
  const TokenRows rows{static_cast<const std::uint8_t*>(store->rows->data), store->rows->nb[1]};
  KvCache& cache = *buffer.cache();
  const int layer = tensor.name.layer;
  if (tensor.name.kind == KvKind::kValue) {
    return cache.store_values(layer, rows, scratch.cells, parallel, scratch.cache);
  }
  const bool rotated = store->rotation != nullptr;
  if (rotated) {
    CQKV_RETURN_IF_ERROR(begin_step(buffer, tensor, *store, scratch));
  }
  return cache.store_keys(layer, rows, scratch.cells, rotated ? &store->rope : nullptr, parallel,
                          scratch.cache);
}

}  // namespace cqkv::device
