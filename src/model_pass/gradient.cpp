// GradientModel: embedding, the loop over layers up and down, and what is kept between.
#include "model_pass/gradient.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <utility>
#include <vector>

#include "core/parallel.h"
#include "model_pass/dense.h"
#include "model_pass/loss_head.h"
#include "model_pass/rope_angles.h"

namespace cqkv {

struct GradientModel::State {
  State(ModelFile file, const GradientOptions& chosen)
      : options(chosen),
        model(std::move(file)),
        parallel(chosen.n_threads),
        layer_pass(model.shape, dense::table(), parallel),
        head(model, dense::table(), parallel) {
    if (options.exact) {
      layer_pass.use_far_gradients(*options.exact);
    }
  }

  GradientOptions options;
  ModelFile model;
  ThreadParallelFor parallel;
  LayerPass layer_pass;
  LossHead head;
  RopeAngles angles;
  RopeAngles local_angles;            // of layers with a window
  std::vector<dense::Buffer> inputs;  // of each layer, and the last one's output
  std::vector<Activations> kept;      // of the last layers, as many as memory allows
  Activations spare;                  // of a layer that is not kept
  dense::Buffer gradient;             // by a layer's output, then input
  const std::atomic<bool>* cancel = nullptr;
  const Codebook* codebook = nullptr;

  KvCoding coding_of(std::size_t layer) const {
    if (codebook == nullptr || layer >= codebook->layers.size()) {
      return {};
    }
    const LayerCodebook& found = codebook->layers[layer];
    return {found.get(KvKind::kKey), found.get(KvKind::kValue)};
  }

  std::size_t n_layers() const { return model.shape.n_layers; }

  Status check_cancelled() const {
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) {
      return {StatusCode::kCancelled, "gradients: cancelled"};
    }
    return {};
  }

  Activations& activations(std::size_t layer) {
    const std::size_t n_spare = n_layers() - kept.size();
    return layer < n_spare ? spare : kept[layer - n_spare];
  }

  bool is_kept(std::size_t layer) const { return layer >= n_layers() - kept.size(); }

  const RopeAngles& angles_of(std::size_t layer) const {
    return model.layers[layer].local() ? local_angles : angles;
  }

  Status check_codes(const Codebook& wanted) const;
  Status prepare(std::span<const Token> tokens, std::size_t n_kept);
  Status check_tokens(std::span<const Token> tokens) const;
  void embed(std::span<const Token> tokens);
  Status forward(std::span<const Token> tokens, std::span<const KvOffset> offsets);
  Status backward(std::size_t n_tokens, const KvSink& sink);
  // Calls `sink` with the keys and the values of a layer.
  Status for_kinds(std::size_t layer, std::size_t n_tokens, const float* key_gradients,
                   const float* value_gradients, const KvSink& sink);
  Result<double> run(std::span<const Token> tokens, const KvSink& sink);
  Result<double> loss(std::span<const Token> tokens, std::span<const KvOffset> offsets);
};

Status GradientModel::State::check_tokens(std::span<const Token> tokens) const {
  if (tokens.size() < 2) {
    return invalid_argument("gradients: got a sequence of " + std::to_string(tokens.size()) +
                            " tokens, want at least 2");
  }
  for (const Token token : tokens) {
    if (token < 0 || static_cast<std::size_t>(token) >= model.shape.n_vocab) {
      return invalid_argument("gradients: got token " + std::to_string(token) + ", want 0 to " +
                              std::to_string(model.shape.n_vocab - 1));
    }
  }
  return {};
}

Status GradientModel::State::check_codes(const Codebook& wanted) const {
  if (!options.exact) {
    return invalid_argument("gradients: codes are for far tokens; say which tokens are exact");
  }
  const auto n_kv_heads = static_cast<int>(model.shape.n_kv_heads);
  const auto head_dim = static_cast<int>(model.shape.head_dim);
  for (const LayerCodebook& layer : wanted.layers) {
    for (const KvKind kind : {KvKind::kKey, KvKind::kValue}) {
      const TensorCodebook* tensor = layer.get(kind);
      if (tensor != nullptr &&
          (tensor->n_kv_heads() != n_kv_heads || tensor->head_dim() != head_dim)) {
        return invalid_argument("gradients: got a codebook for " +
                                std::to_string(tensor->n_kv_heads()) + " KV heads of " +
                                std::to_string(tensor->head_dim()) + " channels, want " +
                                std::to_string(n_kv_heads) + " of " + std::to_string(head_dim));
      }
    }
  }
  return {};
}

Status GradientModel::State::prepare(std::span<const Token> tokens, std::size_t n_kept) {
  CQKV_RETURN_IF_ERROR(check_tokens(tokens));
  if (angles.n_positions() < tokens.size()) {
    angles = RopeAngles(model.rope, tokens.size());
    local_angles = RopeAngles(model.local_rope, tokens.size());
  }
  inputs.resize(n_layers() + 1);
  for (auto& input : inputs) {
    input.resize(tokens.size() * model.shape.n_embd);
  }
  kept.resize(n_kept);
  return {};
}

void GradientModel::State::embed(std::span<const Token> tokens) {
  const std::size_t n_embd = model.shape.n_embd;
  for (std::size_t t = 0; t < tokens.size(); t++) {
    float* row = inputs[0].data() + t * n_embd;
    dequantize_rows(model.embedding, static_cast<std::size_t>(tokens[t]), 1, row);
    for (std::size_t i = 0; i < n_embd; i++) {
      row[i] *= model.shape.embedding_scale;
    }
  }
}

Status GradientModel::State::forward(std::span<const Token> tokens,
                                     std::span<const KvOffset> offsets) {
  embed(tokens);
  for (std::size_t il = 0; il < n_layers(); il++) {
    CQKV_RETURN_IF_ERROR(check_cancelled());
    layer_pass.forward(model.layers[il], angles_of(il), tokens.size(), inputs[il].data(),
                       offsets.empty() ? KvOffset{} : offsets[il], coding_of(il), activations(il),
                       inputs[il + 1].data());
    CQKV_RETURN_IF_ERROR(for_kinds(il, tokens.size(), nullptr, nullptr, check_finite));
  }
  return check_cancelled();
}

Status GradientModel::State::for_kinds(std::size_t layer, std::size_t n_tokens,
                                       const float* key_gradients, const float* value_gradients,
                                       const KvSink& sink) {
  const Activations& rows = activations(layer);
  KvRows out;
  out.layer = static_cast<int>(layer);
  out.shape = {static_cast<int>(model.shape.n_kv_heads), static_cast<int>(model.shape.head_dim)};
  out.n_tokens = n_tokens;
  out.kind = KvKind::kKey;
  out.rows = rows.keys.data();
  out.gradients = key_gradients;
  CQKV_RETURN_IF_ERROR(sink(out));
  out.kind = KvKind::kValue;
  out.rows = rows.values.data();
  out.gradients = value_gradients;
  return sink(out);
}

Status GradientModel::State::backward(std::size_t n_tokens, const KvSink& sink) {
  for (std::size_t il = n_layers(); il-- > 0;) {
    CQKV_RETURN_IF_ERROR(check_cancelled());
    Activations& rows = activations(il);
    if (!is_kept(il)) {
      layer_pass.forward(model.layers[il], angles_of(il), n_tokens, inputs[il].data(), {},
                         coding_of(il), rows, nullptr);
    }
    layer_pass.backward(model.layers[il], angles_of(il), n_tokens, inputs[il].data(), rows, il == 0,
                        gradient.data());
    const float* key_gradients = layer_pass.key_gradients();
    const float* value_gradients = layer_pass.value_gradients();
    CQKV_RETURN_IF_ERROR(for_kinds(il, n_tokens, key_gradients, value_gradients, check_finite));
    CQKV_RETURN_IF_ERROR(for_kinds(il, n_tokens, key_gradients, value_gradients, sink));
  }
  return {};
}

Result<double> GradientModel::State::run(std::span<const Token> tokens, const KvSink& sink) {
  const std::size_t layer_bytes =
      Activations::n_floats(model.shape, tokens.size(), codebook != nullptr) * sizeof(float);
  CQKV_RETURN_IF_ERROR(
      prepare(tokens, std::min(n_layers(), options.activation_bytes / layer_bytes)));
  CQKV_RETURN_IF_ERROR(forward(tokens, {}));
  gradient.resize(tokens.size() * model.shape.n_embd);
  const double total = head.run(tokens, inputs.back().data(), gradient.data());
  if (!std::isfinite(total)) {
    return corrupt(model.file->path() + ": the loss is not finite; the file may be damaged");
  }
  CQKV_RETURN_IF_ERROR(backward(tokens.size(), sink));
  return total / static_cast<double>(tokens.size() - 1);
}

Result<double> GradientModel::State::loss(std::span<const Token> tokens,
                                          std::span<const KvOffset> offsets) {
  if (!offsets.empty() && offsets.size() != n_layers()) {
    return invalid_argument("gradients: got offsets for " + std::to_string(offsets.size()) +
                            " layers, want " + std::to_string(n_layers()));
  }
  CQKV_RETURN_IF_ERROR(prepare(tokens, 0));
  CQKV_RETURN_IF_ERROR(forward(tokens, offsets));
  const double total = head.run(tokens, inputs.back().data(), nullptr);
  return total / static_cast<double>(tokens.size() - 1);
}

GradientModel::GradientModel(std::unique_ptr<State> state) : state_(std::move(state)) {
}

GradientModel::GradientModel(GradientModel&&) noexcept = default;
GradientModel& GradientModel::operator=(GradientModel&&) noexcept = default;
GradientModel::~GradientModel() = default;

Result<GradientModel> GradientModel::load(const std::string& path, const GradientOptions& options) {
  if (options.n_threads < 1) {
    return invalid_argument("gradients: got " + std::to_string(options.n_threads) +
                            " threads, want at least 1");
  }
  auto model = ModelFile::load(path);
  if (!model.ok()) {
    return model.status();
  }
  return GradientModel(std::make_unique<State>(*std::move(model), options));
}

const ModelShape& GradientModel::shape() const {
  return state_->model.shape;
}

Status GradientModel::use_codes(const Codebook* codebook) {
  if (codebook != nullptr) {
    CQKV_RETURN_IF_ERROR(state_->check_codes(*codebook));
  }
  state_->codebook = codebook;
  return {};
}

RopeMode GradientModel::rope_mode() const {
  return state_->model.rope.mode;
}

Result<double> GradientModel::run(std::span<const Token> tokens, const KvSink& sink,
                                  const std::atomic<bool>* cancel) {
  try {
    state_->cancel = cancel;
    return state_->run(tokens, sink);
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::kResourceExhausted,
                  "gradients: not enough memory for a sequence of " +
                      std::to_string(tokens.size()) + " tokens; use shorter ones");
  }
}

Result<double> GradientModel::loss(std::span<const Token> tokens, std::span<const KvOffset> offsets,
                                   const std::atomic<bool>* cancel) {
  try {
    state_->cancel = cancel;
    return state_->loss(tokens, offsets);
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::kResourceExhausted,
                  "gradients: not enough memory for a sequence of " +
                      std::to_string(tokens.size()) + " tokens; use shorter ones");
  }
}

}  // namespace cqkv
