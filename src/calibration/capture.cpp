// KvCapture: the evaluation callback that recognises stores into the cache and
// follows each back to its RoPE; see capture.h.
#include "calibration/capture.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <exception>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ggml-backend.h>

#include "calibration/llama_handles.h"
#include "calibration/unrope.h"
#include "graph/rope_node.h"

namespace cqkv {
namespace {

constexpr int kPieceTokens = 512;

// The store of one layer's keys or values, recognised by the cache tensor's name.
struct CacheStore {
  int layer;
  KvKind kind;
};

bool parse_cache_name(std::string_view name, std::string_view prefix, int& layer) {
  if (!name.starts_with(prefix)) {
    return false;
  }
  const char* end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(name.data() + prefix.size(), end, layer);
  return error == std::errc() && rest == end;
}

bool find_cache_store(const ggml_tensor* node, CacheStore& store) {
  if (node->op != GGML_OP_SET_ROWS || node->view_src == nullptr) {
    return false;
  }
  const std::string_view name = node->view_src->name;
  if (parse_cache_name(name, "cache_k_l", store.layer)) {
    store.kind = KvKind::kKey;
    return true;
  }
  store.kind = KvKind::kValue;
  return parse_cache_name(name, "cache_v_l", store.layer);
}

bool only_reshapes(const ggml_tensor* node) {
  return node->op == GGML_OP_VIEW || node->op == GGML_OP_RESHAPE || node->op == GGML_OP_CONT ||
         node->op == GGML_OP_PERMUTE || node->op == GGML_OP_TRANSPOSE;
}

// The heads behind stored rows: the first 3-dimensional form among their origins.
KvShape find_shape(const ggml_tensor* stored, int default_heads) {
  const std::int64_t n_channels = stored->ne[0];
  const std::int64_t n_tokens = stored->ne[1];
  for (const ggml_tensor* node = stored->src[0]; node != nullptr; node = node->src[0]) {
    if (node->ne[2] == n_tokens && node->ne[3] == 1 && node->ne[0] * node->ne[1] == n_channels) {
      return {static_cast<int>(node->ne[1]), static_cast<int>(node->ne[0])};
    }
    if (!only_reshapes(node)) {
      break;
    }
  }
  return {default_heads, static_cast<int>(n_channels / default_heads)};
}

// The ROPE node that made `stored`, looked for through reshaping only; nullptr if none.
const ggml_tensor* find_rope(const ggml_tensor* stored) {
  const ggml_tensor* node = stored;
  while (node != nullptr && only_reshapes(node)) {
    node = node->src[0];
  }
  return node != nullptr && node->op == GGML_OP_ROPE ? node : nullptr;
}

// Whether a rotation lies before `node`, not beyond the projection that made it: then
// something else was computed after RoPE and keys cannot be rotated back.
bool rope_before(const ggml_tensor* node, int depth) {
  if (node == nullptr || depth == 0 || node->op == GGML_OP_MUL_MAT) {
    return false;
  }
  if (node->op == GGML_OP_ROPE) {
    return true;
  }
  return std::any_of(std::begin(node->src), std::end(node->src),
                     [&](const ggml_tensor* source) { return rope_before(source, depth - 1); });
}

std::vector<float> read_rows(const ggml_tensor* stored) {
  const auto n_channels = static_cast<std::size_t>(stored->ne[0]);
  const auto n_tokens = static_cast<std::size_t>(stored->ne[1]);
  std::vector<float> rows(n_channels * n_tokens);
  for (std::size_t t = 0; t < n_tokens; t++) {
    ggml_backend_tensor_get(stored, rows.data() + t * n_channels, t * stored->nb[1],
                            n_channels * sizeof(float));
  }
  return rows;
}

Result<LlamaModel> load_model(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return Status(StatusCode::kNotFound, path + ": no such model file");
  }
  llama_model_params params = llama_model_default_params();
  // The CPU alone: a KV device or a GPU of this process must not take the cache.
  ggml_backend_dev_t no_devices[] = {nullptr};
  params.devices = no_devices;
  // The default prints dots.
  params.progress_callback = [](float, void*) { return true; };
  params.n_gpu_layers = 0;
  LlamaModel model(llama_model_load_from_file(path.c_str(), params));
  if (model == nullptr) {
    return corrupt(path + ": libllama cannot load this model; its log says why");
  }
  return model;
}

}  // namespace

struct KvCapture::State {
  LlamaModel model;
  LlamaContext context;
  std::string path;
  int n_ctx = 0;
  int n_threads = 1;

  // Of the run in progress.
  const KvSink* sink = nullptr;
  const std::atomic<bool>* cancel = nullptr;
  Status status;
  std::map<std::pair<int, KvKind>, std::size_t> n_delivered;

  static bool on_node(ggml_tensor* node, bool ask, void* state) {
    CacheStore store{};
    auto& self = *static_cast<State*>(state);
    if (ask) {
      return find_cache_store(node, store);
    }
    if (self.status.ok() && find_cache_store(node, store)) {
      try {
        self.status = self.deliver(node, store);
      } catch (const std::exception& error) {
        self.status = {StatusCode::kResourceExhausted, std::string("capture: ") + error.what()};
      }
    }
    return self.status.ok() && !self.cancelled();
  }

  static bool on_abort(void* state) {
    const auto& self = *static_cast<const State*>(state);
    return !self.status.ok() || self.cancelled();
  }

  bool cancelled() const { return cancel != nullptr && cancel->load(std::memory_order_relaxed); }

  Status deliver(const ggml_tensor* node, const CacheStore& store);
  Status unrope_keys(const ggml_tensor* stored, const KvRows& rows, float* data) const;
  Status decode(std::span<const Token> tokens);
};

Status KvCapture::State::deliver(const ggml_tensor* node, const CacheStore& store) {
  const ggml_tensor* stored = node->src[0];
  if (stored->type != GGML_TYPE_F32 || stored->ne[2] != 1 || stored->ne[3] != 1) {
    return unsupported(path + ": layer " + std::to_string(store.layer) + " stores " +
                       std::string(kv_kind_name(store.kind)) +
                       " rows that are not a matrix of f32; this model cannot be captured");
  }
  KvRows rows;
  rows.layer = store.layer;
  rows.kind = store.kind;
  rows.shape = find_shape(stored, llama_model_n_head_kv(model.get()));
  rows.n_tokens = static_cast<std::size_t>(stored->ne[1]);
  auto& n_done = n_delivered[{store.layer, store.kind}];
  rows.first_token = n_done;
  std::vector<float> data = read_rows(stored);
  rows.rows = data.data();
  if (store.kind == KvKind::kKey) {
    CQKV_RETURN_IF_ERROR(unrope_keys(stored, rows, data.data()));
  }
  CQKV_RETURN_IF_ERROR(check_finite(rows));
  n_done += rows.n_tokens;
  return (*sink)(rows);
}

Status KvCapture::State::unrope_keys(const ggml_tensor* stored, const KvRows& rows,
                                     float* data) const {
  const ggml_tensor* node = find_rope(stored);
  if (node == nullptr) {
    constexpr int kDepth = 16;
    if (rope_before(stored, kDepth)) {
      return unsupported(path + ": layer " + std::to_string(rows.layer) +
                         " changes its keys after RoPE, so they have no pre-RoPE form to code");
    }
    return {};
  }
  auto rope = read_rope(node);
  if (!rope.ok()) {
    return {rope.status().code(),
            path + ": layer " + std::to_string(rows.layer) + ": " + rope.status().message()};
  }
  return unrope(*rope, static_cast<std::int32_t>(rows.first_token), rows.shape.n_kv_heads,
                rows.shape.head_dim, rows.n_tokens, n_threads, data);
}

Status KvCapture::State::decode(std::span<const Token> tokens) {
  llama_memory_clear(llama_get_memory(context.get()), true);
  n_delivered.clear();
  status = {};
  std::vector<Token> copy(tokens.begin(), tokens.end());
  const int error = llama_decode(
      context.get(), llama_batch_get_one(copy.data(), static_cast<std::int32_t>(copy.size())));
  CQKV_RETURN_IF_ERROR(status);
  if (cancelled()) {
    return {StatusCode::kCancelled, "capture: cancelled"};
  }
  if (error != 0) {
    return {StatusCode::kInternal, path + ": llama_decode returned " + std::to_string(error) +
                                       " for " + std::to_string(tokens.size()) + " tokens"};
  }
  for (const auto& [key, n_done] : n_delivered) {
    if (n_done != tokens.size()) {
      return {StatusCode::kInternal, path + ": layer " + std::to_string(key.first) + " stored " +
                                         std::to_string(n_done) + " " +
                                         std::string(kv_kind_name(key.second)) + " rows, want " +
                                         std::to_string(tokens.size())};
    }
  }
  if (n_delivered.empty()) {
    return unsupported(path + ": this model stores no keys and values in an attention cache");
  }
  return {};
}

KvCapture::KvCapture(std::unique_ptr<State> state) : state_(std::move(state)) {
}

KvCapture::KvCapture(KvCapture&&) noexcept = default;
KvCapture& KvCapture::operator=(KvCapture&&) noexcept = default;
KvCapture::~KvCapture() = default;

Result<KvCapture> KvCapture::load(const std::string& model_path, int n_ctx, int n_threads) {
  if (n_ctx < 2 || n_threads < 1) {
    return invalid_argument("capture: got a context of " + std::to_string(n_ctx) + " tokens and " +
                            std::to_string(n_threads) + " threads, want at least 2 and 1");
  }
  auto state = std::make_unique<State>();
  auto model = load_model(model_path);
  if (!model.ok()) {
    return model.status();
  }
  state->model = *std::move(model);
  state->path = model_path;
  state->n_ctx = n_ctx;
  state->n_threads = n_threads;
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<std::uint32_t>(n_ctx);
  params.n_batch = params.n_ctx;
  params.n_ubatch = std::min<std::uint32_t>(params.n_ctx, kPieceTokens);
  params.n_seq_max = 1;
  params.n_threads = n_threads;
  params.n_threads_batch = n_threads;
  // With flash attention values are stored as rows; without, transposed.
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.offload_kqv = false;
  params.cb_eval = State::on_node;
  params.cb_eval_user_data = state.get();
  params.abort_callback = State::on_abort;
  params.abort_callback_data = state.get();
  state->context.reset(llama_init_from_model(state->model.get(), params));
  if (state->context == nullptr) {
    return Status(StatusCode::kResourceExhausted,
                  model_path + ": libllama cannot make a context of " + std::to_string(n_ctx) +
                      " tokens with flash attention; its log says why");
  }
  return KvCapture(std::move(state));
}

Status KvCapture::run(std::span<const Token> tokens, const KvSink& sink,
                      const std::atomic<bool>* cancel) {
  if (tokens.size() < 2 || tokens.size() > static_cast<std::size_t>(state_->n_ctx)) {
    return invalid_argument("capture: got a sequence of " + std::to_string(tokens.size()) +
                            " tokens, want 2 to " + std::to_string(state_->n_ctx));
  }
  const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(state_->model.get()));
  const auto bad = std::find_if(tokens.begin(), tokens.end(),
                                [&](Token token) { return token < 0 || token >= n_vocab; });
  if (bad != tokens.end()) {
    return invalid_argument("capture: got token " + std::to_string(*bad) + ", want 0 to " +
                            std::to_string(n_vocab - 1));
  }
  state_->sink = &sink;
  state_->cancel = cancel;
  Status status = state_->decode(tokens);
  state_->sink = nullptr;
  state_->cancel = nullptr;
  return status;
}

}  // namespace cqkv
