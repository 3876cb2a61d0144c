// Ours: see bench_attend.h.
#include "bench_attend.h"

#include <cmath>

#include "kernels/dispatch.h"

namespace cqkv::app {
namespace {

TensorCodec codec_of(const TensorCodebook& codebook, KvKind kind, const RopeParams& rope,
                     bool bytes) {
  return bytes ? TensorCodec(codebook, kind, &rope, kernels::active()) : TensorCodec(codebook);
}

}  // namespace

CodedAttention::CodedAttention(const BenchShape& shape, const BenchInputs& inputs,
                               const BenchCodes& codes, bool bytes)
    : shape_(shape),
      inputs_(inputs),
      codes_(codes),
      rope_(bench_rope(shape)),
      keys_(codec_of(codes.codebook(KvKind::kKey), KvKind::kKey, rope_.params(), bytes)),
      values_(codec_of(codes.codebook(KvKind::kValue), KvKind::kValue, rope_.params(), bytes)),
      out_(shape.query_floats()) {
  rope_.reserve(shape.first_position + shape.n_tokens);
}

std::string CodedAttention::type() const {
  return codes_.codebook(KvKind::kKey).spec().name();
}

std::string CodedAttention::path() const {
  const bool k_bytes = keys_.tables() != nullptr;
  if (k_bytes != (values_.tables() != nullptr)) {
    return "mixed";
  }
  return k_bytes ? "bytes" : "floats";
}

AttentionCall CodedAttention::call(int stream) {
  const std::size_t stream_floats = shape_.query_floats() / shape_.n_streams() * stream;
  AttentionCall call;
  call.n_heads = shape_.n_heads();
  call.n_kv_heads = shape_.n_kv_heads;
  call.head_dim_k = call.head_dim_v = shape_.head_dim;
  call.n_queries = shape_.stream_queries();
  call.n_cells = static_cast<std::size_t>(shape_.stream_cells());
  call.scale = 1.0F / std::sqrt(static_cast<float>(shape_.head_dim));
  call.k.codec = &keys_;
  call.k.data = codes_.stream(KvKind::kKey, stream);
  call.v.codec = &values_;
  call.v.data = codes_.stream(KvKind::kValue, stream);
  call.key_sums = codes_.key_sums();
  call.positions = inputs_.positions.data();
  call.rope = &rope_;
  call.queries = reinterpret_cast<const std::uint8_t*>(inputs_.queries.data() + stream_floats);
  call.query_head_bytes = static_cast<std::size_t>(shape_.head_dim) * sizeof(float);
  call.query_bytes = call.query_head_bytes * static_cast<std::size_t>(shape_.n_heads());
  call.mask_bytes = call.n_cells * sizeof(std::uint16_t);
  call.mask = reinterpret_cast<const std::uint8_t*>(inputs_.mask.data()) +
              call.mask_bytes * static_cast<std::size_t>(call.n_queries) * stream;
  call.out = reinterpret_cast<std::uint8_t*>(out_.data() + stream_floats);
  call.out_head_bytes = call.query_head_bytes;
  call.out_bytes = call.query_bytes;
  return call;
}

Status CodedAttention::run() {
  for (int stream = 0; stream < shape_.n_streams(); stream++) {
    CQKV_RETURN_IF_ERROR(attend(call(stream), parallel_, workspace_));
  }
  return {};
}

// ---------------------------------------------------------------- all layers

ModelAttention::ModelAttention(const BenchShape& shape, const BenchInputs& inputs,
                               const Codebook& codebook)
    : name_(codebook.origin.name) {
  for (const LayerCodebook& layer : codebook.layers) {
    codes_.push_back(std::make_unique<BenchCodes>(
        BenchCodes::of(shape, *layer.get(KvKind::kKey), *layer.get(KvKind::kValue))));
    layers_.push_back(
        std::make_unique<CodedAttention>(shape, inputs, *codes_.back(), /*bytes=*/true));
  }
}

std::size_t ModelAttention::cache_bytes() const {
  std::size_t bytes = 0;
  for (const auto& codes : codes_) {
    bytes += codes->bytes();
  }
  return bytes;
}

void ModelAttention::set_n_threads(int n_threads) {
  for (const auto& layer : layers_) {
    layer->set_n_threads(n_threads);
  }
}

Status ModelAttention::run() {
  for (const auto& layer : layers_) {
    CQKV_RETURN_IF_ERROR(layer->run());
  }
  return {};
}

std::string ModelAttention::path() const {
  const std::string first = layers_.front()->path();
  for (const auto& layer : layers_) {
    if (layer->path() != first) {
      return "mixed";
    }
  }
  return first;
}

}  // namespace cqkv::app
