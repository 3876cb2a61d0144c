// See graph_ops.h. The operations themselves are in store_op.cpp and attention_op.cpp;
// the context shift, which is an addition to positions, is here.
#include "device/graph_ops.h"

#include <algorithm>
#include <array>
#include <span>

#include "core/exceptions.h"
#include "device/attention_op.h"
#include "device/kv_buffer.h"
#include "device/nodes.h"
#include "device/refusal.h"
#include "device/store_op.h"

namespace cqkv::device {
namespace {

// A cache that is or, in a dry run without memory, would be coded.
bool is_coded(const ggml_tensor* tensor) {
  if (!is_our_cache(tensor)) {
    return false;
  }
  if (KvBuffer* buffer = find_buffer(tensor)) {
    return buffer->coded(tensor) != nullptr;
  }
  const auto library = current_library();
  return library.ok() && codebook_for(**library, root_of(tensor), nullptr) != nullptr;
}

// A graph that is only measured: its caches have a buffer without memory.
bool in_dry_run(const ggml_tensor* node) {
  const auto dry = [](const ggml_tensor* tensor) {
    return is_our_cache(tensor) && find_buffer(tensor) == nullptr;
  };
  return dry(node) || std::any_of(std::begin(node->src), std::end(node->src), dry);
}

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
    CQKV_RETURN_IF_ERROR(buffer.cache()->shift(first, std::span(shifts).first(n)));
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
  if (is_noop(node->op)) {
    return check_view(node);
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
  Status status =
      without_exceptions("computing a graph", [&] { return run_checked(node, parallel, scratch); });
  if (!status.ok()) {
    buffer_of(node->op == GGML_OP_FLASH_ATTN_EXT ? node->src[1] : node).abandon();
  }
  return status;
}

}  // namespace cqkv::device
