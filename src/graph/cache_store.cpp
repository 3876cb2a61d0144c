// See cache_store.h. The order of rows is followed by strides: views move nothing, and a copy
// (CONT) writes the elements that its source shows in their order, without gaps.
#include "graph/cache_store.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <vector>

#include "graph/rope_node.h"
#include "graph/sources.h"

namespace cqkv {
namespace {

constexpr std::size_t kValueBytes = sizeof(float);
constexpr const char* kAdvice =
    "; run this model without a codebook, or with exact keys (--config-k exact)";

bool is_view(const ggml_tensor* node) {
  return is_noop(node->op) && node->src[0] != nullptr;
}

// The operation whose result `tensor` shows, seen through views only.
const ggml_tensor* computed(const ggml_tensor* tensor) {
  while (is_view(tensor)) {
    tensor = tensor->src[0];
  }
  return tensor;
}

// The same, seen through copies too.
const ggml_tensor* made(const ggml_tensor* tensor) {
  tensor = computed(tensor);
  return tensor->op == GGML_OP_CONT ? made(tensor->src[0]) : tensor;
}

// ---- The order of rows -----------------------------------------------------

// Tokens in memory: `n_channels` values in one piece, the next token's token_bytes later.
struct TokenRows {
  std::size_t n_channels = 0;
  std::size_t token_bytes = 0;
};

// Whether the elements of `tensor`, in their order, are the rows of token after token.
bool shows_rows(const ggml_tensor* tensor, const TokenRows& rows) {
  const bool gaps = rows.token_bytes != rows.n_channels * kValueBytes;
  std::size_t n_before = 1;  // elements of the axes before this one
  for (int axis = 0; axis < GGML_MAX_DIMS; axis++) {
    const auto n = static_cast<std::size_t>(tensor->ne[axis]);
    const bool within = n_before < rows.n_channels;  // an axis along one row
    const std::size_t step =
        within || !gaps ? n_before * kValueBytes : n_before / rows.n_channels * rows.token_bytes;
    const bool over_a_gap = gaps && within && n_before * n > rows.n_channels;
    if (over_a_gap || (n > 1 && tensor->nb[axis] != step)) {
      return false;
    }
    n_before *= n;
  }
  return true;
}

// Bytes from the beginning of `node`, which `shown` is a view of, to that of `shown`.
std::size_t offset_in(const ggml_tensor* shown, const ggml_tensor* node) {
  return shown->view_offs - (shown == node ? shown->view_offs : node->view_offs);
}

// Whether `shown` is whole heads of every token of a rotation's result.
bool shows_heads(const ggml_tensor* shown, const ggml_tensor* rope, std::int64_t n_channels,
                 std::int64_t n_tokens) {
  const std::size_t head_bytes = static_cast<std::size_t>(rope->ne[0]) * kValueBytes;
  const std::size_t offset = offset_in(shown, rope);
  const auto n_row = static_cast<std::size_t>(n_channels);
  return rope->ne[2] == n_tokens && rope->ne[3] == 1 && rope->nb[0] == kValueBytes &&
         (rope->ne[1] == 1 || rope->nb[1] == head_bytes) && n_channels % rope->ne[0] == 0 &&
         offset % head_bytes == 0 &&
         offset + n_row * kValueBytes <= static_cast<std::size_t>(rope->ne[1]) * head_bytes &&
         shows_rows(shown, {n_row, rope->nb[2]});
}

// Whether the rows are those of the rotation that they are made from through views and copies.
bool in_order(const ggml_tensor* rows) {
  const std::int64_t n_channels = rows->ne[0];
  const std::int64_t n_tokens = rows->ne[1];
  const auto n_row = static_cast<std::size_t>(n_channels);
  const ggml_tensor* shown = rows;
  const ggml_tensor* node = computed(shown);
  for (; node->op == GGML_OP_CONT; node = computed(shown)) {
    if (!shows_rows(shown, {n_row, n_row * kValueBytes})) {
      return false;
    }
    shown = node->src[0];
  }
  return shows_heads(shown, node, n_channels, n_tokens);
}

// ---- Which rotation --------------------------------------------------------

bool is_rope(const ggml_tensor* tensor) {
  return tensor != nullptr && made(tensor)->op == GGML_OP_ROPE;
}

// Whether a rotation lies between `node` and the projection, a product with a weight. Products
// with something else follow a rotation directly, if at all.
Result<bool> has_rotation_above(const ggml_tensor* node) {
  std::vector<const ggml_tensor*> open{node};
  for (std::size_t i = 0; i < open.size(); i++) {
    if (i == kMaxVisited) {
      return unsupported("more than " + std::to_string(kMaxVisited) +
                         " operations lie between the projection and the store");
    }
    const ggml_tensor* at = open[i];
    if (std::any_of(std::begin(at->src), std::end(at->src), is_rope)) {
      return true;
    }
    if (at->op == GGML_OP_MUL_MAT || at->op == GGML_OP_MUL_MAT_ID) {
      continue;
    }
    std::copy_if(std::begin(at->src), std::end(at->src), std::back_inserter(open),
                 [&](const ggml_tensor* source) {
                   return source != nullptr &&
                          std::find(open.begin(), open.end(), source) == open.end();
                 });
  }
  return false;
}

// The rotation of stored keys; nullptr if they have none.
Result<const ggml_tensor*> find_rotation(const ggml_tensor* rows) {
  const ggml_tensor* node = made(rows);
  if (node->op == GGML_OP_ROPE) {
    if (!in_order(rows)) {
      return unsupported("between " + node_text(node) +
                         " and the store heads or tokens are put in another order, so keys cannot "
                         "be rotated back");
    }
    return node;
  }
  if (node->op == GGML_OP_NONE) {
    return unsupported("the graph does not show how '" + std::string(node->name) +
                       "' is computed, so nothing says whether keys are rotated");
  }
  const Result<bool> rotated = has_rotation_above(node);
  if (!rotated.ok()) {
    return rotated.status();
  }
  if (*rotated) {
    return unsupported(node_text(node) +
                       " follows the rotary embedding, so keys cannot be rotated back");
  }
  return nullptr;
}

// The head size of stored rows: that of the first three-dimensional form that they are moved from.
int find_head_dim(const ggml_tensor* rows) {
  for (const ggml_tensor* node = rows; is_view(node) || node->op == GGML_OP_CONT;) {
    node = node->src[0];
    if (node->ne[2] == rows->ne[1] && node->ne[3] == 1 &&
        node->ne[0] * node->ne[1] == rows->ne[0]) {
      return static_cast<int>(node->ne[0]);
    }
  }
  return 0;
}

Status check_rows(const ggml_tensor* rows) {
  if (rows->type != GGML_TYPE_F32 || rows->nb[0] != kValueBytes || rows->ne[2] != 1 ||
      rows->ne[3] != 1) {
    return unsupported("rows of type " + std::string(ggml_type_name(rows->type)) + ", [" +
                       std::to_string(rows->ne[0]) + ", " + std::to_string(rows->ne[1]) + ", " +
                       std::to_string(rows->ne[2]) + ", " + std::to_string(rows->ne[3]) +
                       "], want a matrix of f32; run this model without a codebook");
  }
  return {};
}

Status read_rotation(CacheStore& store) {
  const Result<const ggml_tensor*> rotation = find_rotation(store.rows);
  if (!rotation.ok() || *rotation == nullptr) {
    return rotation.status();
  }
  Result<RopeParams> rope = read_rope(*rotation);
  if (!rope.ok()) {
    return rope.status();
  }
  store.rotation = *rotation;
  store.rope = *std::move(rope);
  store.head_dim = static_cast<int>(store.rotation->ne[0]);
  return {};
}

Status with_place(const CacheName& cache, const Status& status, const char* advice) {
  return {status.code(), cache_text(cache) + ": " + status.message() + advice};
}

}  // namespace

std::optional<CacheName> stored_cache(const ggml_tensor* node) {
  return node->op == GGML_OP_SET_ROWS && node->view_src != nullptr
             ? parse_cache_name(root_of(node)->name)
             : std::nullopt;
}

Result<CacheStore> read_cache_store(const ggml_tensor* node) {
  CacheStore store;
  store.cache = *stored_cache(node);
  store.rows = node->src[0];
  const Status rows = check_rows(store.rows);
  if (!rows.ok()) {
    return with_place(store.cache, rows, "");
  }
  store.head_dim = find_head_dim(store.rows);
  if (store.cache.kind == KvKind::kKey) {
    const Status rotation = read_rotation(store);
    if (!rotation.ok()) {
      return with_place(store.cache, rotation, kAdvice);
    }
  }
  return store;
}

}  // namespace cqkv
