// See attention_op.h.
#include "device/attention_op.h"

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

// A side that is not coded; what is coded the cache fills in.
CacheSide plain_side(const ggml_tensor* view, std::size_t first_cell) {
  CacheSide side;
  const ggml_tensor* root = root_of(view);
  if (buffer_of(view).coded(view) == nullptr) {
    side.data = static_cast<const std::uint8_t*>(root->data) + first_cell * root->nb[1];
    side.row_bytes = view->nb[1];
    side.head_bytes = view->nb[2];
  }
  return side;
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

// The cells of both views are the same, or, of a side that is not coded, in the caller's hands.
Status check_cells(const ggml_tensor* node, const CellRange& keys, const CellRange& values) {
  const auto coded = [](const ggml_tensor* view) { return buffer_of(view).coded(view) != nullptr; };
  const bool same = keys.first == values.first && keys.stride == values.stride;
  if (same || !coded(node->src[1]) || !coded(node->src[2])) {
    return {};
  }
  return unsupported(node_text(node) + ": keys and values of other cells");
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
  const CellRange& cells = coded_keys != nullptr ? k_cells : v_cells;
  CQKV_RETURN_IF_ERROR(check_cells(node, k_cells, v_cells));
  scratch.streams.clear();
  for (std::int64_t stream = 0; stream < k->ne[3]; stream++) {
    const auto i = static_cast<std::size_t>(stream);
    StreamAttention attention{cells.first + i * cells.stride, call_of(node, stream)};
    attention.call.k = plain_side(k, k_cells.first + i * k_cells.stride);
    attention.call.v = plain_side(v, v_cells.first + i * v_cells.stride);
    scratch.streams.push_back(attention);
  }
  const Status status =
      buffer.cache()->attend(coded.name.layer, scratch.streams, parallel, scratch.cache);
  // A graph in an order that the cache does not expect, which only matters to the window.
  return status.code() == StatusCode::kInvalidArgument
             ? unsupported(node_text(node) + ": " + status.message() +
                           "; run with --window 0 --sinks 0")
             : status;
}

}  // namespace cqkv::device
