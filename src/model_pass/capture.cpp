// KvCapture: the evaluation callback that takes rows from stores into the cache; see
// capture.h. What a graph stores is read in graph/cache_store.h.
#include "model_pass/capture.h"

#include <algorithm>
#include <exception>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <ggml-backend.h>

#include "graph/cache_store.h"
#include "llama/handles.h"
#include "rope/rope.h"

namespace cqkv {
namespace {

constexpr int kPieceTokens = 512;

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

// Undoes the rotation of keys, with the angles that the cache uses too.
void rotate_back(const RopeParams& rope, const KvRows& rows, float* keys) {
  std::vector<float> cosines(static_cast<std::size_t>(rope.n_dims) / 2);
  std::vector<float> sines(cosines.size());
  for (std::size_t t = 0; t < rows.n_tokens; t++) {
    const auto position = static_cast<std::int32_t>(rows.first_token + t);
    rope_row_ggml(rope, position, cosines.data(), sines.data());
    rope_inverse(rope, cosines.data(), sines.data(), rows.shape.n_kv_heads, rows.shape.head_dim,
                 keys + t * static_cast<std::size_t>(rows.shape.n_channels()));
  }
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
  bool wants_keys = true;

  // Of the run in progress.
  const KvSink* sink = nullptr;
  const std::atomic<bool>* cancel = nullptr;
  Status status;
  std::map<std::pair<int, KvKind>, std::size_t> n_delivered;

  static bool on_node(ggml_tensor* node, bool ask, void* state) {
    auto& self = *static_cast<State*>(state);
    const auto cache = stored_cache(node);
    const bool wanted = cache && (self.wants_keys || cache->kind == KvKind::kValue);
    if (ask) {
      return wanted;
    }
    if (self.status.ok() && wanted) {
      try {
        self.status = self.deliver(node);
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

  Status deliver(const ggml_tensor* node);
  Status decode(std::span<const Token> tokens);
};

Status KvCapture::State::deliver(const ggml_tensor* node) {
  const auto store = read_cache_store(node);
  if (!store.ok()) {
    return {store.status().code(), path + ": " + store.status().message()};
  }
  const auto n_channels = static_cast<int>(store->rows->ne[0]);
  const int head_dim =
      store->head_dim > 0 ? store->head_dim : n_channels / llama_model_n_head_kv(model.get());
  KvRows rows;
  rows.layer = store->cache.layer;
  rows.kind = store->cache.kind;
  rows.shape = {n_channels / head_dim, head_dim};
  rows.n_tokens = static_cast<std::size_t>(store->rows->ne[1]);
  auto& n_done = n_delivered[{rows.layer, rows.kind}];
  rows.first_token = n_done;
  std::vector<float> data = read_rows(store->rows);
  rows.rows = data.data();
  if (store->rotation != nullptr) {
    rotate_back(store->rope, rows, data.data());
  }
  CQKV_RETURN_IF_ERROR(check_finite(rows));
  n_done += rows.n_tokens;
  return (*sink)(rows);
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

Result<KvCapture> KvCapture::load(const std::string& model_path, int n_ctx, int n_threads,
                                  bool wants_keys) {
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
  state->wants_keys = wants_keys;
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
