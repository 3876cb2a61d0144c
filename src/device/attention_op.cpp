// See attention_op.h.
#include "device/attention_op.h"

#include <algorithm>
#include <optional>
#include <span>

#include "device/kv_buffer.h"
#include "device/nodes.h"
#include "graph/op_param.h"

namespace cqkv::device {
namespace {

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

CacheSide side_of(const ggml_tensor* view, std::size_t first_cell) {
  CacheSide side;
  const ggml_tensor* root = root_of(view);
  if (CodedTensor* coded = buffer_of(view).coded(view)) {
    side.codebook = coded->codebook;
    side.tables = buffer_of(view).byte_tables(*coded);
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
  const MaskView mask{call.mask, call.mask_bytes};
  for (std::size_t t = 0; t < n_cells; t++) {
    if (cells.at(first + t) != CellTable::kInvalid) {
      continue;
    }
    for (int i = 0; i < call.n_queries; i++) {
      if (mask.sees(static_cast<std::size_t>(i), t)) {
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
  call.softcap = op_param<float>(node, 2);
  if (const ggml_tensor* sinks = node->src[4]) {
    call.sink_logits = static_cast<const float*>(sinks->data);
  }
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

// After attention: rows that stay exact go to the pool.
void move_exact_rows(KvBuffer& buffer, const ggml_tensor* node) {
  for (const ggml_tensor* view : {node->src[1], node->src[2]}) {
    CodedTensor* tensor = buffer.coded(view);
    if (tensor != nullptr) {
      buffer.move_exact_rows(*tensor);
    }
  }
}

}  // namespace

// Attention reads a cache through one permuted view of its heads. ggml's scheduler gives
// an attention to the device only next to a store; the attention of a layer without a cache
// of its own it leaves to the CPU, with a copy of the cache that would hold records.
Status check_view(const ggml_tensor* view) {
  if (view->op != GGML_OP_PERMUTE || !is_our_cache(view)) {
    return {};
  }
  CodedTensor* tensor = buffer_of(view).coded(view);
  if (tensor == nullptr || view->ne[0] != tensor->codebook->head_dim() || ++tensor->n_views == 1) {
    return {};
  }
  return unsupported(layer_text(*tensor) +
                     " are read by another layer too, on the CPU, which cannot read codes; run "
                     "this model without a codebook");
}

Status check_attention(const ggml_tensor* node) {
  const ggml_tensor* q = node->src[0];
  const ggml_tensor* k = node->src[1];
  const ggml_tensor* v = node->src[2];
  const ggml_tensor* mask = node->src[3];
  const ggml_tensor* sinks = node->src[4];
  if (op_param<float>(node, 1) != 0.0F) {
    return unsupported(
        "attention with linear position bias (ALiBi) on coded caches is not "
        "implemented; run this model without a codebook");
  }
  if (root_of(k) == root_of(v)) {
    return unsupported(
        "attention whose values are a part of the keys (MLA) on coded caches is not "
        "implemented; run this model without a codebook");
  }
  if (q->type != GGML_TYPE_F32 || (mask != nullptr && mask->type != GGML_TYPE_F16) ||
      (sinks != nullptr && sinks->type != GGML_TYPE_F32) || !is_our_cache(k) || !is_our_cache(v)) {
    return unsupported(node_text(node) +
                       ": queries, mask, sinks or caches are of an unexpected kind");
  }
  CQKV_RETURN_IF_ERROR(check_side(k));
  return check_side(v);
}

Status run_attention(ggml_tensor* node, ParallelFor& parallel, GraphScratch& scratch) {
  const ggml_tensor* k = node->src[1];
  const ggml_tensor* v = node->src[2];
  KvBuffer& buffer = buffer_of(k);
  const CellRange k_cells = *cells_of(k);
  const CellRange v_cells = *cells_of(v);
  const CodedTensor* coded_keys = buffer.coded(k);
  const CodedTensor& coded = coded_keys != nullptr ? *coded_keys : *buffer.coded(v);
  Result<std::optional<ExactRows>> exact = exact_rows_of(buffer, node, k_cells);
  if (!exact.ok()) {
    return exact.status();
  }
  const bool knows_positions = buffer.knows_positions(coded);
  for (std::int64_t stream = 0; stream < k->ne[3]; stream++) {
    AttentionCall call = call_of(node, stream);
    const std::size_t first = k_cells.first + static_cast<std::size_t>(stream) * k_cells.stride;
    call.k = side_of(k, first);
    call.v = side_of(v, v_cells.first + static_cast<std::size_t>(stream) * v_cells.stride);
    if (knows_positions) {
      call.positions = buffer.cells().positions(first);
    }
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

}  // namespace cqkv::device
