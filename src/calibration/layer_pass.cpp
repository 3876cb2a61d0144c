// LayerPass works on strips of rows, so that a strip stays in the cache from one
// product to the next; only attention needs all rows.
#include "calibration/layer_pass.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace cqkv {
namespace {

constexpr std::size_t kRows = 96;  // of a strip; a multiple of every table's tile rows

// c = a b + bias, for the rows of a strip.
void linear(const dense::Table& table, const float* a, std::size_t n_in, std::size_t n_rows,
            const dense::Packed& b, const std::vector<float>& bias, float* c) {
  const std::size_t n_out = b.n_columns;
  bool accumulate = false;
  if (!bias.empty()) {
    for (std::size_t i = 0; i < n_rows; i++) {
      std::copy(bias.begin(), bias.end(), c + i * n_out);
    }
    accumulate = true;
  }
  table.multiply(
      {{a, static_cast<std::ptrdiff_t>(n_in), 1}, n_rows, b.view(), 0, 0, c, n_out, accumulate});
}

void add_to(const float* from, float* to, std::size_t n) {
  for (std::size_t i = 0; i < n; i++) {
    to[i] += from[i];
  }
}

AttentionShape attention_shape(const ModelShape& shape, std::size_t n_tokens) {
  return {n_tokens, shape.n_heads, shape.n_kv_heads, shape.head_dim};
}

}  // namespace

struct LayerPass::Rows {
  std::size_t first;
  std::size_t n;
};

void Activations::resize(const ModelShape& shape, std::size_t n_tokens) {
  queries.resize(n_tokens * shape.n_query_channels());
  keys.resize(n_tokens * shape.n_kv_channels());
  values.resize(n_tokens * shape.n_kv_channels());
  attention.resize(n_tokens * shape.n_query_channels());
  lse.resize(n_tokens * shape.n_heads);
  middle.resize(n_tokens * shape.n_embd);
  gate.resize(n_tokens * shape.n_ff);
  up.resize(n_tokens * shape.n_ff);
}

std::size_t Activations::n_floats(const ModelShape& shape, std::size_t n_tokens) {
  return n_tokens * (2 * shape.n_query_channels() + 2 * shape.n_kv_channels() + shape.n_heads +
                     shape.n_embd + 2 * shape.n_ff);
}

template <typename Function>
void LayerPass::for_rows(std::size_t n_tokens, const Function& function) {
  for (Scratch& scratch : scratch_) {  // here, since tasks must not throw
    scratch.norm.resize(kRows * shape_.n_embd);
    scratch.hidden.resize(kRows * shape_.n_ff);
  }
  const auto n_strips = static_cast<int>((n_tokens + kRows - 1) / kRows);
  parallel_.run(n_strips, [&](int task, int thread) {
    const std::size_t first = static_cast<std::size_t>(task) * kRows;
    function(Rows{first, std::min(kRows, n_tokens - first)},
             scratch_[static_cast<std::size_t>(thread)]);
  });
}

void LayerPass::pack(const LayerTensors& layer, Direction direction) {
  const PackRequest requests[] = {
      {&layer.q.weight, &q_},       {&layer.k.weight, &k_},       {&layer.v.weight, &v_},
      {&layer.o.weight, &o_},       {&layer.gate.weight, &gate_}, {&layer.up.weight, &up_},
      {&layer.down.weight, &down_},
  };
  pack_weights(requests, direction, table_, parallel_);
}

void LayerPass::project(const LayerTensors& layer, const RopeAngles& angles, const Rows& rows,
                        const float* input, const KvOffset& offset, Activations& activations,
                        Scratch& scratch) const {
  const std::size_t n_embd = shape_.n_embd;
  const std::size_t n_q = shape_.n_query_channels();
  const std::size_t n_kv = shape_.n_kv_channels();
  float* norm = scratch.norm.data();
  for (std::size_t i = 0; i < rows.n; i++) {
    table_.rms_norm(input + (rows.first + i) * n_embd, layer.attn_norm.data(), norm + i * n_embd,
                    n_embd, shape_.rms_epsilon);
  }
  float* queries = activations.queries.data() + rows.first * n_q;
  float* keys = activations.keys.data() + rows.first * n_kv;
  float* values = activations.values.data() + rows.first * n_kv;
  linear(table_, norm, n_embd, rows.n, q_, layer.q.bias, queries);
  linear(table_, norm, n_embd, rows.n, k_, layer.k.bias, keys);
  linear(table_, norm, n_embd, rows.n, v_, layer.v.bias, values);
  if (offset.keys != nullptr) {
    add_to(offset.keys + rows.first * n_kv, keys, rows.n * n_kv);
  }
  if (offset.values != nullptr) {
    add_to(offset.values + rows.first * n_kv, values, rows.n * n_kv);
  }
  for (std::size_t i = 0; i < rows.n; i++) {
    angles.rotate(rows.first + i, shape_.n_heads, shape_.head_dim, queries + i * n_q);
  }
}

void LayerPass::rotate_keys(const RopeAngles& angles, std::size_t n_tokens,
                            const dense::Buffer& keys) {
  const std::size_t n_kv = shape_.n_kv_channels();
  rotated_keys_.resize(n_tokens * n_kv);
  std::memcpy(rotated_keys_.data(), keys.data(), n_tokens * n_kv * sizeof(float));
  for (std::size_t t = 0; t < n_tokens; t++) {
    angles.rotate(t, shape_.n_kv_heads, shape_.head_dim, rotated_keys_.data() + t * n_kv);
  }
}

void LayerPass::feed_forward(const LayerTensors& layer, const Rows& rows, const float* input,
                             Activations& activations, float* output, Scratch& scratch) const {
  const std::size_t n_embd = shape_.n_embd;
  const std::size_t n_q = shape_.n_query_channels();
  const std::size_t n_ff = shape_.n_ff;
  float* middle = activations.middle.data() + rows.first * n_embd;
  linear(table_, activations.attention.data() + rows.first * n_q, n_q, rows.n, o_, layer.o.bias,
         middle);
  add_to(input + rows.first * n_embd, middle, rows.n * n_embd);
  float* norm = scratch.norm.data();
  for (std::size_t i = 0; i < rows.n; i++) {
    table_.rms_norm(middle + i * n_embd, layer.ffn_norm.data(), norm + i * n_embd, n_embd,
                    shape_.rms_epsilon);
  }
  float* gate = activations.gate.data() + rows.first * n_ff;
  float* up = activations.up.data() + rows.first * n_ff;
  linear(table_, norm, n_embd, rows.n, gate_, layer.gate.bias, gate);
  linear(table_, norm, n_embd, rows.n, up_, layer.up.bias, up);
  if (output == nullptr) {
    return;
  }
  table_.swiglu(gate, up, scratch.hidden.data(), rows.n * n_ff);
  float* out = output + rows.first * n_embd;
  linear(table_, scratch.hidden.data(), n_ff, rows.n, down_, layer.down.bias, out);
  add_to(middle, out, rows.n * n_embd);
}

void LayerPass::forward(const LayerTensors& layer, const RopeAngles& angles, std::size_t n_tokens,
                        const float* input, const KvOffset& offset, Activations& activations,
                        float* output) {
  activations.resize(shape_, n_tokens);
  pack(layer, Direction::kForward);
  for_rows(n_tokens, [&](const Rows& rows, Scratch& scratch) {
    project(layer, angles, rows, input, offset, activations, scratch);
  });
  rotate_keys(angles, n_tokens, activations.keys);
  attention_.forward(attention_shape(shape_, n_tokens),
                     {activations.queries.data(), rotated_keys_.data(), activations.values.data(),
                      activations.attention.data(), activations.lse.data()});
  for_rows(n_tokens, [&](const Rows& rows, Scratch& scratch) {
    feed_forward(layer, rows, input, activations, output, scratch);
  });
}

void LayerPass::feed_forward_back(const LayerTensors& layer, const Rows& rows,
                                  Activations& activations, float* gradient, Scratch& scratch) {
  const std::size_t n_embd = shape_.n_embd;
  const std::size_t n_ff = shape_.n_ff;
  const std::vector<float> no_bias;
  float* by_out = gradient + rows.first * n_embd;
  float* hidden = scratch.hidden.data();
  linear(table_, by_out, n_embd, rows.n, down_, no_bias, hidden);
  float* gate = activations.gate.data() + rows.first * n_ff;
  float* up = activations.up.data() + rows.first * n_ff;
  table_.swiglu_back(gate, up, hidden, gate, up, rows.n * n_ff);
  float* norm = scratch.norm.data();
  linear(table_, gate, n_ff, rows.n, gate_, no_bias, norm);
  table_.multiply(
      {{up, static_cast<std::ptrdiff_t>(n_ff), 1}, rows.n, up_.view(), 0, 0, norm, n_embd, true});
  const float* middle = activations.middle.data() + rows.first * n_embd;
  for (std::size_t i = 0; i < rows.n; i++) {
    table_.rms_norm_back(middle + i * n_embd, layer.ffn_norm.data(), norm + i * n_embd,
                         by_out + i * n_embd, n_embd, shape_.rms_epsilon);
  }
  linear(table_, by_out, n_embd, rows.n, o_, no_bias,
         attention_gradients_.data() + rows.first * shape_.n_query_channels());
}

void LayerPass::project_back(const LayerTensors& layer, const RopeAngles& angles, const Rows& rows,
                             const float* input, bool last, float* gradient, Scratch& scratch) {
  const std::size_t n_embd = shape_.n_embd;
  const std::size_t n_q = shape_.n_query_channels();
  const std::size_t n_kv = shape_.n_kv_channels();
  float* queries = query_gradients_.data() + rows.first * n_q;
  float* keys = key_gradients_.data() + rows.first * n_kv;
  const float* values = value_gradients_.data() + rows.first * n_kv;
  for (std::size_t i = 0; i < rows.n; i++) {
    angles.rotate_back(rows.first + i, shape_.n_kv_heads, shape_.head_dim, keys + i * n_kv);
    angles.rotate_back(rows.first + i, shape_.n_heads, shape_.head_dim, queries + i * n_q);
  }
  if (last) {
    return;
  }
  float* norm = scratch.norm.data();
  linear(table_, queries, n_q, rows.n, q_, {}, norm);
  const auto kv_stride = static_cast<std::ptrdiff_t>(n_kv);
  table_.multiply({{keys, kv_stride, 1}, rows.n, k_.view(), 0, 0, norm, n_embd, true});
  table_.multiply({{values, kv_stride, 1}, rows.n, v_.view(), 0, 0, norm, n_embd, true});
  for (std::size_t i = 0; i < rows.n; i++) {
    const std::size_t row = (rows.first + i) * n_embd;
    table_.rms_norm_back(input + row, layer.attn_norm.data(), norm + i * n_embd, gradient + row,
                         n_embd, shape_.rms_epsilon);
  }
}

void LayerPass::backward(const LayerTensors& layer, const RopeAngles& angles, std::size_t n_tokens,
                         const float* input, Activations& activations, bool last, float* gradient) {
  attention_gradients_.resize(n_tokens * shape_.n_query_channels());
  query_gradients_.resize(n_tokens * shape_.n_query_channels());
  key_gradients_.resize(n_tokens * shape_.n_kv_channels());
  value_gradients_.resize(n_tokens * shape_.n_kv_channels());
  pack(layer, Direction::kBackward);
  for_rows(n_tokens, [&](const Rows& rows, Scratch& scratch) {
    feed_forward_back(layer, rows, activations, gradient, scratch);
  });
  rotate_keys(angles, n_tokens, activations.keys);
  attention_.backward(attention_shape(shape_, n_tokens),
                      {activations.queries.data(), rotated_keys_.data(), activations.values.data(),
                       activations.attention.data(), activations.lse.data()},
                      {attention_gradients_.data(), query_gradients_.data(), key_gradients_.data(),
                       value_gradients_.data()});
  for_rows(n_tokens, [&](const Rows& rows, Scratch& scratch) {
    project_back(layer, angles, rows, input, last, gradient, scratch);
  });
}

}  // namespace cqkv
