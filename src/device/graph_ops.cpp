// See graph_ops.h. The facts on what arrives in which tensor are in
// docs/architecture.md, "What the device sees".
#include "device/graph_ops.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <new>
#include <optional>
#include <span>
#include <vector>

#include "core/half.h"
#include "core/hash.h"
#include "device/kv_buffer.h"

namespace cqkv::device {
namespace {

constexpr int kMaxWalk = 64;  // nodes visited when looking for a weight or a rotation

bool is_our_cache(const ggml_tensor* tensor) {
  return tensor != nullptr && is_cache_like(root_of(tensor)->name) && is_ours(tensor);
}

// A cache that is or, in a dry run without memory, would be coded.
bool is_coded(const ggml_tensor* tensor) {
  if (!is_our_cache(tensor)) {
    return false;
  }
  if (buffer_of(tensor).base() != nullptr) {
    return buffer_of(tensor).coded(tensor) != nullptr;
  }
  const auto library = current_library();
  return library.ok() && codebook_for(**library, root_of(tensor), nullptr) != nullptr;
}

// A graph that is only measured: its caches have a buffer without memory.
bool in_dry_run(const ggml_tensor* node) {
  const auto dry = [](const ggml_tensor* tensor) {
    return is_our_cache(tensor) && buffer_of(tensor).base() == nullptr;
  };
  return dry(node) || std::any_of(std::begin(node->src), std::end(node->src), dry);
}

std::string node_text(const ggml_tensor* node) {
  return std::string(ggml_op_name(node->op)) + " '" + node->name + "'";
}

std::string layer_text(const CodedTensor& tensor) {
  return std::string(kv_kind_name(tensor.name.kind)) + "s of layer " +
         std::to_string(tensor.name.layer);
}

template <typename T>
T op_param(const ggml_tensor* node, int index) {
  T value{};
  std::memcpy(&value, node->op_params + index, sizeof(T));
  return value;
}

// ---- Rotations -------------------------------------------------------------

// Down from the stored rows over views: the operation that made them.
const ggml_tensor* producer_of(const ggml_tensor* rows) {
  while (rows != nullptr && (rows->op == GGML_OP_VIEW || rows->op == GGML_OP_RESHAPE)) {
    rows = rows->src[0];
  }
  return rows;
}

// Whether a rotation lies above `node` on its main path, up to the projection.
bool has_rotation_above(const ggml_tensor* node) {
  for (int i = 0; i < kMaxWalk && node != nullptr; i++) {
    if (node->op == GGML_OP_ROPE) {
      return true;
    }
    if (node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_MUL_MAT_ID) {
      return false;
    }
    node = node->src[0];
  }
  return false;
}

Result<RopeParams> rope_of(const ggml_tensor* node) {
  const auto mode = op_param<std::int32_t>(node, 2);
  if (mode != 0 && mode != 2) {
    return unsupported("rotary embedding of mode " + std::to_string(mode) +
                       ": only normal (0) and NeoX (2) keys can be coded; run without a codebook");
  }
  if (const auto offset = op_param<std::int32_t>(node, 15); offset != 0) {
    return unsupported("rotary embedding that begins at channel " + std::to_string(offset) +
                       ", want 0; run without a codebook");
  }
  RopeParams params;
  params.n_dims = op_param<std::int32_t>(node, 1);
  params.mode = mode == 2 ? RopeMode::kNeox : RopeMode::kNormal;
  params.n_ctx_orig = op_param<std::int32_t>(node, 4);
  params.freq_base = op_param<float>(node, 5);
  params.freq_scale = op_param<float>(node, 6);
  params.ext_factor = op_param<float>(node, 7);
  params.attn_factor = op_param<float>(node, 8);
  params.beta_fast = op_param<float>(node, 9);
  params.beta_slow = op_param<float>(node, 10);
  const ggml_tensor* factors = node->src[2];
  if (factors != nullptr && factors->data != nullptr && factors->buffer != nullptr) {
    params.freq_factors.resize(static_cast<std::size_t>(params.n_dims) / 2);
    if (factors->type != GGML_TYPE_F32 || ggml_nelements(factors) < params.n_dims / 2) {
      return unsupported("frequency factors of an unexpected shape");
    }
    ggml_backend_tensor_get(factors, params.freq_factors.data(), 0,
                            params.freq_factors.size() * sizeof(float));
  }
  CQKV_RETURN_IF_ERROR(params.check(static_cast<int>(node->ne[0])));
  return params;
}

// ---- Fingerprint -----------------------------------------------------------

const ggml_tensor* find_weight(const ggml_tensor* node, const char* name) {
  std::vector<const ggml_tensor*> open{node};
  for (std::size_t i = 0; i < open.size() && i < kMaxWalk; i++) {
    for (const ggml_tensor* source : open[i]->src) {
      if (source == nullptr) {
        continue;
      }
      if (std::strcmp(source->name, name) == 0) {
        return source;
      }
      open.push_back(source);
    }
  }
  return nullptr;
}

// Compares the fingerprint of the layer's norm with the codebook's, once a layer.
Status verify_model(CodedTensor& tensor, const ggml_tensor* rows) {
  const auto& origin = tensor.book->codebook.origin;
  const auto layer = static_cast<std::size_t>(tensor.name.layer);
  if (tensor.verified || layer >= origin.model_fingerprint.size() ||
      origin.model_fingerprint[layer] == 0) {
    return {};
  }
  char name[GGML_MAX_NAME];
  std::snprintf(name, sizeof(name), kFingerprintWeight, tensor.name.layer);
  const ggml_tensor* weight = find_weight(rows, name);
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

Status check_store(const ggml_tensor* node) {
  const ggml_tensor* rows = node->src[0];
  const ggml_tensor* index = node->src[1];
  CodedTensor& tensor = *buffer_of(node).coded(node);
  if (node->ne[0] != tensor.codebook->n_channels()) {
    return unsupported(node_text(node) + " stores rows of " + std::to_string(node->ne[0]) +
                       " values, want " + std::to_string(tensor.codebook->n_channels()) +
                       ": coded caches need flash attention; run with -fa on");
  }
  if (rows->type != GGML_TYPE_F32 || rows->nb[0] != sizeof(float) || rows->ne[2] != 1 ||
      (index->type != GGML_TYPE_I64 && index->type != GGML_TYPE_I32)) {
    return unsupported(node_text(node) + ": rows of type " + ggml_type_name(rows->type) +
                       ", want f32; run without a codebook");
  }
  CQKV_RETURN_IF_ERROR(verify_model(tensor, rows));
  if (tensor.name.kind == KvKind::kValue) {
    return {};
  }
  const ggml_tensor* producer = producer_of(rows);
  if (producer != nullptr && producer->op == GGML_OP_ROPE) {
    if (producer->ne[0] != tensor.codebook->head_dim()) {
      return {StatusCode::kMismatch, "codebook " + tensor.book->path + ": head size " +
                                         std::to_string(tensor.codebook->head_dim()) +
                                         ", the model's is " + std::to_string(producer->ne[0])};
    }
    return rope_of(producer).status();
  }
  if (has_rotation_above(producer)) {
    return unsupported(layer_text(tensor) + ": " + node_text(producer) +
                       " follows the rotary embedding, so keys cannot be rotated back; run this "
                       "model without a codebook, or with exact keys (--config-k exact)");
  }
  return {};
}

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

// Takes the graph's positions if this is the first rotated key layer of the buffer,
// and makes sure that the batch's angles are those of this layer.
Status begin_keys(KvBuffer& buffer, CodedTensor& tensor, const ggml_tensor* rope,
                  std::span<const std::size_t> cells) {
  Result<RopeParams> params = rope_of(rope);
  if (!params.ok()) {
    return params.status();
  }
  if (buffer.position_owner() == nullptr) {
    buffer.set_position_owner(&tensor);
  }
  PositionBatch& batch = buffer.batch();
  bool fresh = false;
  if (buffer.position_owner() == &tensor) {
    const ggml_tensor* positions = rope->src[1];
    batch.positions.resize(cells.size());
    ggml_backend_tensor_get(positions, batch.positions.data(), 0,
                            batch.positions.size() * sizeof(std::int32_t));
    buffer.begin_tokens(batch.positions, cells);
    fresh = true;
  }
  if (batch.positions.size() != cells.size()) {
    return {StatusCode::kInternal, "layer " + std::to_string(tensor.name.layer) + " stores " +
                                       std::to_string(cells.size()) +
                                       " keys, the first layer stored " +
                                       std::to_string(batch.positions.size())};
  }
  if (fresh || !(batch.rope == *params)) {
    compute_angles(batch, *params);
  }
  tensor.rotated = true;
  tensor.rope = std::move(*params);
  return {};
}

void write_exact_rows(const CodedTensor& tensor, const GraphScratch& scratch, std::int64_t first,
                      std::int64_t last, std::uint8_t* exact) {
  const auto n_channels = static_cast<std::size_t>(tensor.codebook->n_channels());
  const auto n_codes = static_cast<std::size_t>(tensor.layout.n_codes());
  std::vector<float> decoded(n_channels);
  for (auto t = static_cast<std::size_t>(first); t < static_cast<std::size_t>(last); t++) {
    tensor.codebook->decode(scratch.codes.data() + t * n_codes, 1, decoded.data(), n_channels);
    write_exact_row(tensor.exact, scratch.rows.data() + t * n_channels, decoded.data(),
                    exact + t * tensor.exact.row_bytes());
  }
}

// Codes of all rows into scratch.codes and, unless `exact` is null, what the codes lose.
void encode_rows(const CodedTensor& tensor, const ggml_tensor* rows, const PositionBatch* batch,
                 std::uint8_t* exact, ParallelFor& parallel, GraphScratch& scratch) {
  constexpr std::int64_t kChunk = 16;  // tokens of one task
  const auto n_tokens = rows->ne[1];
  const auto n_channels = static_cast<std::size_t>(tensor.codebook->n_channels());
  const auto n_codes = static_cast<std::size_t>(tensor.layout.n_codes());
  scratch.rows.resize(static_cast<std::size_t>(n_tokens) * n_channels);
  scratch.codes.resize(static_cast<std::size_t>(n_tokens) * n_codes);
  const auto task = [&](int chunk, int /*thread*/) {
    const std::int64_t first = chunk * kChunk;
    const std::int64_t last = std::min(first + kChunk, n_tokens);
    for (std::int64_t t = first; t < last; t++) {
      float* row = scratch.rows.data() + static_cast<std::size_t>(t) * n_channels;
      std::memcpy(row, static_cast<const char*>(rows->data) + t * rows->nb[1],
                  n_channels * sizeof(float));
      if (batch != nullptr) {
        const std::size_t half = static_cast<std::size_t>(tensor.rope.n_dims) / 2;
        rope_inverse(tensor.rope, batch->cosines.data() + static_cast<std::size_t>(t) * half,
                     batch->sines.data() + static_cast<std::size_t>(t) * half,
                     tensor.layout.n_kv_heads, tensor.layout.head_dim, row);
      }
    }
    tensor.codebook->encode(scratch.rows.data() + static_cast<std::size_t>(first) * n_channels,
                            static_cast<std::size_t>(last - first), n_channels,
                            scratch.codes.data() + static_cast<std::size_t>(first) * n_codes);
    if (exact != nullptr) {
      write_exact_rows(tensor, scratch, first, last, exact);
    }
  };
  parallel.run(static_cast<int>((n_tokens + kChunk - 1) / kChunk), task);
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

Status run_store(ggml_tensor* node, ParallelFor& parallel, GraphScratch& scratch) {
  const ggml_tensor* rows = node->src[0];
  KvBuffer& buffer = buffer_of(node);
  CodedTensor& tensor = *buffer.coded(node);
  CQKV_RETURN_IF_ERROR(read_cells(node, tensor, scratch.cells));
  const ggml_tensor* producer = producer_of(rows);
  const bool rotated =
      tensor.name.kind == KvKind::kKey && producer != nullptr && producer->op == GGML_OP_ROPE;
  tensor.rotated = rotated;
  if (rotated) {
    CQKV_RETURN_IF_ERROR(begin_keys(buffer, tensor, producer, scratch.cells));
  }
  std::uint8_t* exact =
      buffer.uses_window(tensor) ? buffer.begin_exact_rows(tensor, scratch.cells.size()) : nullptr;
  encode_rows(tensor, rows, rotated ? &buffer.batch() : nullptr, exact, parallel, scratch);
  const auto n_codes = static_cast<std::size_t>(tensor.layout.n_codes());
  for (std::size_t t = 0; t < scratch.cells.size(); t++) {
    put_codes(tensor.layout, tensor.codes, scratch.cells[t], scratch.codes.data() + t * n_codes);
    buffer.cells().occupy(scratch.cells[t]);
  }
  return {};
}

// ---- Attention -------------------------------------------------------------

// The cells of a view [head_dim, n_kv, n_kv_heads, n_streams] on a cache tensor.
struct CellRange {
  std::size_t first = 0;
  std::size_t stride = 0;  // from stream to stream
};

Result<CellRange> cells_of(const ggml_tensor* view) {
  const ggml_tensor* root = root_of(view);
  const std::size_t offset = view->view_src != nullptr ? view->view_offs : 0;
  CellRange range{offset / root->nb[1], view->nb[3] / root->nb[1]};
  if (offset % root->nb[1] != 0 || view->nb[1] != root->nb[1] || range.first % kBlockCells != 0 ||
      (view->ne[3] > 1 && range.stride % kBlockCells != 0)) {
    return unsupported(std::string("a view of '") + root->name + "' does not begin at a block of " +
                       std::to_string(kBlockCells) +
                       " cells; use a context size that is a multiple of 256");
  }
  return range;
}

Status check_side(const ggml_tensor* view) {
  CQKV_RETURN_IF_ERROR(cells_of(view).status());
  const CodedTensor* coded = buffer_of(view).coded(view);
  if (coded != nullptr && (view->ne[0] != coded->codebook->head_dim() ||
                           view->ne[2] != coded->codebook->n_kv_heads())) {
    return {StatusCode::kMismatch,
            "codebook " + coded->book->path + ": " + std::to_string(coded->codebook->n_kv_heads()) +
                " KV heads of " + std::to_string(coded->codebook->head_dim()) +
                " channels, the model has " + std::to_string(view->ne[2]) + " of " +
                std::to_string(view->ne[0])};
  }
  if (coded == nullptr && view->type != GGML_TYPE_F16) {
    return unsupported(std::string("cache type ") + ggml_type_name(view->type) +
                       " beside a coded cache, want f16");
  }
  return {};
}

// Layers that have no cache of their own read that of a layer before them.
void note_reader(const ggml_tensor* queries, const ggml_tensor* cache) {
  CodedTensor* tensor = buffer_of(cache).coded(cache);
  const std::optional<int> layer = layer_of_queries(root_of(queries)->name);
  if (tensor != nullptr && layer && *layer != tensor->name.layer) {
    tensor->read_by_others = true;
  }
}

Status check_attention(const ggml_tensor* node) {
  const ggml_tensor* q = node->src[0];
  const ggml_tensor* k = node->src[1];
  const ggml_tensor* v = node->src[2];
  const ggml_tensor* mask = node->src[3];
  if (op_param<float>(node, 1) != 0.0F) {
    return unsupported(
        "attention with linear position bias (ALiBi) on coded caches is not "
        "implemented; run this model without a codebook");
  }
  if (op_param<float>(node, 2) != 0.0F) {
    return unsupported(
        "attention with logit softcapping on coded caches is not implemented; run "
        "this model without a codebook");
  }
  if (node->src[4] != nullptr) {
    return unsupported(
        "attention sinks (learned logits) on coded caches are not implemented; run "
        "this model without a codebook");
  }
  if (q->type != GGML_TYPE_F32 || (mask != nullptr && mask->type != GGML_TYPE_F16) ||
      !is_our_cache(k) || !is_our_cache(v)) {
    return unsupported(node_text(node) + ": queries, mask or caches are of an unexpected kind");
  }
  CQKV_RETURN_IF_ERROR(check_side(k));
  CQKV_RETURN_IF_ERROR(check_side(v));
  note_reader(q, k);
  note_reader(q, v);
  return {};
}

CacheSide side_of(const ggml_tensor* view, std::size_t first_cell) {
  CacheSide side;
  const ggml_tensor* root = root_of(view);
  if (const CodedTensor* coded = buffer_of(view).coded(view)) {
    side.codebook = coded->codebook;
    side.data = coded->codes + first_cell / kBlockCells * coded->layout.block_bytes();
    return side;
  }
  side.data = static_cast<const std::uint8_t*>(root->data) + first_cell * root->nb[1];
  side.row_bytes = view->nb[1];
  side.head_bytes = view->nb[2];
  return side;
}

// A cell that could not be restored must not be seen by any query.
Status check_visible(const CellTable& cells, std::size_t first, std::size_t n_cells,
                     const AttentionCall& call) {
  if (!cells.any_invalid(first, n_cells)) {
    return {};
  }
  for (std::size_t t = 0; t < n_cells; t++) {
    if (cells.at(first + t) != CellTable::kInvalid) {
      continue;
    }
    for (int i = 0; i < call.n_queries; i++) {
      std::uint16_t value = 0;
      if (call.mask != nullptr) {
        std::memcpy(&value, call.mask + static_cast<std::size_t>(i) * call.mask_bytes + 2 * t, 2);
      }
      if (half_to_float(value) > -INFINITY) {
        return {StatusCode::kMismatch,
                "a token whose saved state could not be restored would be used; process the "
                "prompt again"};
      }
    }
  }
  return {};
}

AttentionCall call_of(const ggml_tensor* node, std::int64_t stream) {
  const ggml_tensor* q = node->src[0];
  const ggml_tensor* k = node->src[1];
  const ggml_tensor* v = node->src[2];
  const ggml_tensor* mask = node->src[3];
  AttentionCall call;
  call.n_heads = static_cast<int>(q->ne[2]);
  call.n_kv_heads = static_cast<int>(k->ne[2]);
  call.head_dim_k = static_cast<int>(k->ne[0]);
  call.head_dim_v = static_cast<int>(v->ne[0]);
  call.n_queries = static_cast<int>(q->ne[1]);
  call.n_cells = static_cast<std::size_t>(k->ne[1]);
  call.scale = op_param<float>(node, 0);
  const auto at = [stream](const ggml_tensor* tensor, std::size_t bytes) {
    return static_cast<std::uint8_t*>(tensor->data) + static_cast<std::size_t>(stream) * bytes;
  };
  call.queries = at(q, q->nb[3]);
  call.query_bytes = q->nb[1];
  call.query_head_bytes = q->nb[2];
  if (mask != nullptr) {
    call.mask = at(mask, mask->ne[3] > 1 ? mask->nb[3] : 0);
    call.mask_bytes = mask->nb[1];
  }
  call.out = at(node, node->nb[3]);
  call.out_head_bytes = node->nb[1];
  call.out_bytes = node->nb[2];
  return call;
}

// The positions of a stream's queries: the graph's tokens, stream by stream.
std::span<const std::int32_t> query_positions(const KvBuffer& buffer, const ggml_tensor* node,
                                              std::int64_t stream) {
  const auto n_queries = static_cast<std::size_t>(node->src[0]->ne[1]);
  return std::span(buffer.batch().positions)
      .subspan(static_cast<std::size_t>(stream) * n_queries, n_queries);
}

// With the first attention of a graph: which rows stay exact after it.
Status plan_window(KvBuffer& buffer, const ggml_tensor* node, const CellRange& cells) {
  const ggml_tensor* k = node->src[1];
  const auto n_tokens = static_cast<std::size_t>(node->src[0]->ne[1] * k->ne[3]);
  if (n_tokens != buffer.batch().positions.size()) {
    return {StatusCode::kUnsupported, node_text(node) + ": " + std::to_string(n_tokens) +
                                          " queries, but " +
                                          std::to_string(buffer.batch().positions.size()) +
                                          " tokens were stored; run with --window 0 --sinks 0"};
  }
  if (!buffer.window().needs_plan()) {
    return {};
  }
  for (std::int64_t stream = 0; stream < k->ne[3]; stream++) {
    const std::size_t first = cells.first + static_cast<std::size_t>(stream) * cells.stride;
    const AttentionCall call = call_of(node, stream);
    buffer.window().plan(first, call.n_cells, query_positions(buffer, node, stream),
                         buffer.cells().positions(first), {call.mask, call.mask_bytes});
  }
  buffer.window().finish_plan();
  return {};
}

// The exact rows of a coded side; no pool where the side is plain or has no window.
Result<ExactRows::Side> exact_side(KvBuffer& buffer, const CodedTensor* tensor) {
  if (tensor == nullptr) {
    return ExactRows::Side{};
  }
  const std::uint8_t* batch = buffer.exact_rows(*tensor);
  if (batch == nullptr) {
    return unsupported(layer_text(*tensor) +
                       " are read after another layer stored its own; run with --window 0 "
                       "--sinks 0");
  }
  return ExactRows::Side{tensor->pool, batch};
}

// What all streams of an attention node share of its exact rows; nothing without a window.
Result<std::optional<ExactRows>> exact_rows_of(KvBuffer& buffer, const ggml_tensor* node,
                                               const CellRange& cells) {
  const CodedTensor* k = buffer.coded(node->src[1]);
  const CodedTensor* v = buffer.coded(node->src[2]);
  if (!buffer.uses_window(k != nullptr ? *k : *v)) {
    return std::optional<ExactRows>();
  }
  CQKV_RETURN_IF_ERROR(plan_window(buffer, node, cells));
  const auto k_side = exact_side(buffer, k);
  const auto v_side = exact_side(buffer, v);
  if (!k_side.ok() || !v_side.ok()) {
    return k_side.ok() ? v_side.status() : k_side.status();
  }
  ExactRows rows;
  rows.sinks = buffer.window().sinks();
  rows.n_pool = static_cast<std::int32_t>(buffer.window().n_slots());
  rows.window = buffer.window().spec().window;
  rows.k = *k_side;
  rows.v = *v_side;
  return std::optional(rows);
}

void set_rotation(KvBuffer& buffer, const CodedTensor& keys, AttentionCall& call) {
  RopeTable& table = buffer.rope_table(keys.rope);
  const auto& positions = buffer.batch().positions;
  if (!positions.empty()) {
    table.reserve(*std::max_element(positions.begin(), positions.end()) + 1);
  }
  call.rope = &table;
}

// After attention: rows that stay exact go to the pool, unless other layers still read them.
void move_exact_rows(KvBuffer& buffer, const ggml_tensor* node) {
  for (const ggml_tensor* view : {node->src[1], node->src[2]}) {
    CodedTensor* tensor = buffer.coded(view);
    if (tensor != nullptr && !tensor->read_by_others) {
      buffer.move_exact_rows(*tensor);
    }
  }
}

Status run_attention(ggml_tensor* node, ParallelFor& parallel, GraphScratch& scratch) {
  const ggml_tensor* k = node->src[1];
  const ggml_tensor* v = node->src[2];
  KvBuffer& buffer = buffer_of(k);
  const CellRange k_cells = *cells_of(k);
  const CellRange v_cells = *cells_of(v);
  const CodedTensor* coded_keys = buffer.coded(k);
  Result<std::optional<ExactRows>> exact = exact_rows_of(buffer, node, k_cells);
  if (!exact.ok()) {
    return exact.status();
  }
  for (std::int64_t stream = 0; stream < k->ne[3]; stream++) {
    AttentionCall call = call_of(node, stream);
    const std::size_t first = k_cells.first + static_cast<std::size_t>(stream) * k_cells.stride;
    call.k = side_of(k, first);
    call.v = side_of(v, v_cells.first + static_cast<std::size_t>(stream) * v_cells.stride);
    call.positions = buffer.cells().positions(first);
    if (coded_keys != nullptr && coded_keys->rotated) {
      set_rotation(buffer, *coded_keys, call);
    }
    if (*exact) {
      (*exact)->rows = buffer.window().rows(first);
      (*exact)->query_positions = query_positions(buffer, node, stream).data();
      call.exact = &**exact;
    }
    CQKV_RETURN_IF_ERROR(check_visible(buffer.cells(), first, call.n_cells, call));
    CQKV_RETURN_IF_ERROR(attend(call, parallel, scratch.attention));
  }
  if (*exact) {
    move_exact_rows(buffer, node);
  }
  return {};
}

// ---- Context shift ---------------------------------------------------------

Status check_shift(const ggml_tensor* node) {
  if (node->view_src == nullptr || buffer_of(node).coded(node)->name.kind != KvKind::kKey) {
    return unsupported(node_text(node) + " is not a context shift of a key cache");
  }
  return {};
}

Status run_shift(ggml_tensor* node) {
  KvBuffer& buffer = buffer_of(node);
  const CodedTensor* tensor = buffer.coded(node);
  if (buffer.position_owner() == nullptr) {
    buffer.set_position_owner(tensor);  // a restored state, shifted before anything was stored
  }
  if (buffer.position_owner() != tensor) {
    return {};  // the owner shifts for all layers
  }
  buffer.settle();
  // In pieces and without asking for memory: positions half shifted could not be mended.
  std::array<std::int32_t, 256> shifts;
  const auto n_cells = static_cast<std::size_t>(ggml_nelements(node->src[1]));
  for (std::size_t first = 0; first < n_cells; first += shifts.size()) {
    const std::size_t n = std::min(shifts.size(), n_cells - first);
    ggml_backend_tensor_get(node->src[1], shifts.data(), first * sizeof(std::int32_t),
                            n * sizeof(std::int32_t));
    buffer.cells().shift(first, std::span(shifts).first(n));
  }
  return {};
}

Status run_checked(ggml_tensor* node, ParallelFor& parallel, GraphScratch& scratch) {
  CQKV_RETURN_IF_ERROR(check_coded(node));
  switch (node->op) {
    case GGML_OP_SET_ROWS:
      return run_store(node, parallel, scratch);
    case GGML_OP_FLASH_ATTN_EXT:
      return run_attention(node, parallel, scratch);
    default:
      return run_shift(node);
  }
}

}  // namespace

NodeKind classify(const ggml_tensor* node) {
  if (is_noop(node->op)) {
    return NodeKind::kNoop;
  }
  bool plain = is_our_cache(node);
  bool coded = is_coded(node);
  for (const ggml_tensor* source : node->src) {
    plain = plain || is_our_cache(source);
    coded = coded || is_coded(source);
  }
  if (coded) {
    return NodeKind::kCoded;
  }
  return plain ? NodeKind::kPlain : NodeKind::kForeign;
}

Status check_coded(const ggml_tensor* node) {
  if (in_dry_run(node)) {
    return {};
  }
  switch (node->op) {
    case GGML_OP_SET_ROWS:
      return check_store(node);
    case GGML_OP_FLASH_ATTN_EXT:
      return check_attention(node);
    case GGML_OP_ROPE:
      return check_shift(node);
    default:
      return unsupported(node_text(node) +
                         " on a coded cache: only flash attention can read it; run with -fa on, "
                         "and without --no-kv-offload");
  }
}

Status run_coded(ggml_tensor* node, ParallelFor& parallel, GraphScratch& scratch) {
  Status status;
  try {
    status = run_checked(node, parallel, scratch);
  } catch (const std::bad_alloc&) {
    status = {StatusCode::kResourceExhausted, "out of memory in graph computation"};
  }
  if (!status.ok()) {
    buffer_of(node->op == GGML_OP_FLASH_ATTN_EXT ? node->src[1] : node).abandon();
  }
  return status;
}

}  // namespace cqkv::device
