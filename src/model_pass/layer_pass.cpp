// LayerPass works on strips of rows, so that a strip stays in the cache from one
// product to the next; only attention needs all rows.
#include "model_pass/layer_pass.h"

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

AttentionShape attention_shape(const ModelShape& shape, const LayerTensors& layer,
                               std::size_t n_tokens) {
  return {n_tokens,       shape.n_heads,     shape.n_kv_heads,
          shape.head_dim, shape.score_scale, layer.window};
}

// Row `index` of `width` floats; nullptr of a buffer that the architecture has no use for.
const float* row_of(const dense::Buffer& buffer, std::size_t index, std::size_t width) {
  return buffer.size() == 0 ? nullptr : buffer.data() + index * width;
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
  raw_queries.resize(shape.head_norms ? queries.size() : 0);
  raw_keys.resize(shape.head_norms ? keys.size() : 0);
  attn_out.resize(shape.post_norms ? middle.size() : 0);
  ffn_out.resize(shape.post_norms ? middle.size() : 0);
}

std::size_t Activations::n_floats(const ModelShape& shape, std::size_t n_tokens, bool coded) {
  const std::size_t n_raw =
      (shape.head_norms ? shape.n_query_channels() + shape.n_kv_channels() : 0) +
      (shape.post_norms ? 2 * shape.n_embd : 0);
  const std::size_t n_kv = (coded ? 4 : 2) * shape.n_kv_channels();
  return n_tokens * (2 * shape.n_query_channels() + n_kv + shape.n_heads + shape.n_embd +
                     2 * shape.n_ff + n_raw);
}

template <typename Function>
void LayerPass::for_rows(std::size_t n_tokens, const Function& function) {
  for (Scratch& scratch : scratch_) {  // here, since tasks must not throw
    scratch.norm.resize(kRows * shape_.n_embd);
    scratch.hidden.resize(kRows * shape_.n_ff);
    scratch.by_raw.resize(
        kRows * std::max({shape_.n_embd, shape_.n_query_channels(), shape_.n_kv_channels()}));
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

// RMS norms of rows as wide as the weight.
void LayerPass::norm(const std::vector<float>& weight, const float* in, std::size_t n_rows,
                     float* out) const {
  const std::size_t n = weight.size();
  for (std::size_t i = 0; i < n_rows; i++) {
    table_.rms_norm(in + i * n, weight.data(), out + i * n, n, shape_.rms_epsilon);
  }
}

// Adds to in_gradient.
void LayerPass::norm_back(const std::vector<float>& weight, const float* in, const float* gradient,
                          std::size_t n_rows, float* in_gradient) const {
  const std::size_t n = weight.size();
  for (std::size_t i = 0; i < n_rows; i++) {
    table_.rms_norm_back(in + i * n, weight.data(), gradient + i * n, in_gradient + i * n, n,
                         shape_.rms_epsilon);
  }
}

// out = norm(in W + bias), of the rows of a strip.
void LayerPass::normed_linear(const NormedLinear& l, const Rows& rows, const float* in,
                              float* out) const {
  const std::size_t n_out = l.weights.n_columns;
  float* raw = l.norm.empty() ? out : l.raw.data() + rows.first * n_out;
  linear(table_, in, l.weights.n_inner, rows.n, l.weights, l.bias, raw);
  if (!l.norm.empty()) {
    norm(l.norm, raw, rows.n * n_out / l.norm.size(), out);
  }
}

// The gradient by what goes into a norm, given that by its output: the same where no norm is.
const float* LayerPass::behind_norm(const std::vector<float>& weight, const float* in,
                                    const float* gradient, std::size_t n_rows,
                                    Scratch& scratch) const {
  if (weight.empty()) {
    return gradient;
  }
  float* result = scratch.by_raw.data();
  std::fill(result, result + n_rows * weight.size(), 0.0F);
  norm_back(weight, in, gradient, n_rows, result);
  return result;
}

void LayerPass::project(const LayerTensors& layer, const RopeAngles& angles, const Rows& rows,
                        const float* input, const KvOffset& offset, Activations& activations,
                        Scratch& scratch) const {
  const std::size_t n_embd = shape_.n_embd;
  const std::size_t n_q = shape_.n_query_channels();
  const std::size_t n_kv = shape_.n_kv_channels();
  float* normed = scratch.norm.data();
  norm(layer.attn_norm, input + rows.first * n_embd, rows.n, normed);
  float* queries = activations.queries.data() + rows.first * n_q;
  float* keys = activations.keys.data() + rows.first * n_kv;
  float* values = activations.values.data() + rows.first * n_kv;
  normed_linear({q_, layer.q.bias, layer.q_norm, activations.raw_queries}, rows, normed, queries);
  normed_linear({k_, layer.k.bias, layer.k_norm, activations.raw_keys}, rows, normed, keys);
  linear(table_, normed, n_embd, rows.n, v_, layer.v.bias, values);
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
                            const dense::Buffer& keys, dense::Buffer& rotated) const {
  const std::size_t n_kv = shape_.n_kv_channels();
  rotated.resize(n_tokens * n_kv);
  std::memcpy(rotated.data(), keys.data(), n_tokens * n_kv * sizeof(float));
  for (std::size_t t = 0; t < n_tokens; t++) {
    angles.rotate(t, shape_.n_kv_heads, shape_.head_dim, rotated.data() + t * n_kv);
  }
}

// What a cache gives back of rows.
void LayerPass::code(const TensorCodebook* codebook, std::size_t n_tokens,
                     const dense::Buffer& rows, dense::Buffer& coded) {
  const std::size_t n_kv = shape_.n_kv_channels();
  coded.resize(n_tokens * n_kv);
  if (codebook == nullptr) {
    std::copy_n(rows.data(), n_tokens * n_kv, coded.data());
    return;
  }
  const auto n_codes = static_cast<std::size_t>(codebook->n_codes());
  codes_.resize(n_tokens * n_codes);
  for_rows(n_tokens, [&](const Rows& strip, Scratch&) {
    std::uint16_t* codes = codes_.data() + strip.first * n_codes;
    codebook->encode(rows.data() + strip.first * n_kv, strip.n, n_kv, codes);
    codebook->decode(codes, strip.n, coded.data() + strip.first * n_kv, n_kv);
  });
}

// With keys rotated, what was coded among them.
AttentionRows LayerPass::attention_rows(const RopeAngles& angles, std::size_t n_tokens,
                                        Activations& activations) {
  rotate_keys(angles, n_tokens, activations.keys, rotated_keys_);
  AttentionRows rows{activations.queries.data(), rotated_keys_.data(),
                     activations.values.data(),  activations.attention.data(),
                     activations.lse.data(),     exact_.value_or(ExactTokens{})};
  if (activations.coded_keys.size() > 0) {
    rotate_keys(angles, n_tokens, activations.coded_keys, rotated_coded_keys_);
    rows.coded = {rotated_coded_keys_.data(), activations.coded_values.data()};
  }
  return rows;
}

void LayerPass::feed_forward(const LayerTensors& layer, const Rows& rows, const float* input,
                             Activations& activations, float* output, Scratch& scratch) const {
  const std::size_t n_embd = shape_.n_embd;
  const std::size_t n_q = shape_.n_query_channels();
  const std::size_t n_ff = shape_.n_ff;
  float* middle = activations.middle.data() + rows.first * n_embd;
  normed_linear({o_, layer.o.bias, layer.attn_post_norm, activations.attn_out}, rows,
                activations.attention.data() + rows.first * n_q, middle);
  add_to(input + rows.first * n_embd, middle, rows.n * n_embd);
  float* normed = scratch.norm.data();
  norm(layer.ffn_norm, middle, rows.n, normed);
  float* gate = activations.gate.data() + rows.first * n_ff;
  float* up = activations.up.data() + rows.first * n_ff;
  linear(table_, normed, n_embd, rows.n, gate_, layer.gate.bias, gate);
  linear(table_, normed, n_embd, rows.n, up_, layer.up.bias, up);
  if (output == nullptr && !shape_.post_norms) {
    return;
  }
  const auto gated = shape_.gelu ? table_.geglu : table_.swiglu;
  gated(gate, up, scratch.hidden.data(), rows.n * n_ff);
  // Without an output, activations.ffn_out alone is wanted.
  float* out = output == nullptr ? normed : output + rows.first * n_embd;
  normed_linear({down_, layer.down.bias, layer.ffn_post_norm, activations.ffn_out}, rows,
                scratch.hidden.data(), out);
  add_to(middle, out, rows.n * n_embd);
}

void LayerPass::forward(const LayerTensors& layer, const RopeAngles& angles, std::size_t n_tokens,
                        const float* input, const KvOffset& offset, const KvCoding& coding,
                        Activations& activations, float* output) {
  activations.resize(shape_, n_tokens);
  pack(layer, Direction::kForward);
  for_rows(n_tokens, [&](const Rows& rows, Scratch& scratch) {
    project(layer, angles, rows, input, offset, activations, scratch);
  });
  activations.coded_keys.resize(0);
  if (coding.any()) {
    code(coding.keys, n_tokens, activations.keys, activations.coded_keys);
    code(coding.values, n_tokens, activations.values, activations.coded_values);
  }
  attention_.forward(attention_shape(shape_, layer, n_tokens),
                     attention_rows(angles, n_tokens, activations));
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
  const float* by_ffn =
      behind_norm(layer.ffn_post_norm, row_of(activations.ffn_out, rows.first, n_embd), by_out,
                  rows.n, scratch);
  linear(table_, by_ffn, n_embd, rows.n, down_, no_bias, hidden);
  float* gate = activations.gate.data() + rows.first * n_ff;
  float* up = activations.up.data() + rows.first * n_ff;
  const auto gated_back = shape_.gelu ? table_.geglu_back : table_.swiglu_back;
  gated_back(gate, up, hidden, gate, up, rows.n * n_ff);
  float* by_normed = scratch.norm.data();
  linear(table_, gate, n_ff, rows.n, gate_, no_bias, by_normed);
  const auto ff_stride = static_cast<std::ptrdiff_t>(n_ff);
  table_.multiply({{up, ff_stride, 1}, rows.n, up_.view(), 0, 0, by_normed, n_embd, true});
  norm_back(layer.ffn_norm, activations.middle.data() + rows.first * n_embd, by_normed, rows.n,
            by_out);
  const float* by_attention =
      behind_norm(layer.attn_post_norm, row_of(activations.attn_out, rows.first, n_embd), by_out,
                  rows.n, scratch);
  linear(table_, by_attention, n_embd, rows.n, o_, no_bias,
         attention_gradients_.data() + rows.first * shape_.n_query_channels());
}

// Gradients by queries and keys, from behind RoPE to before it.
void LayerPass::rotate_back(const RopeAngles& angles, const Rows& rows) {
  const std::size_t n_q = shape_.n_query_channels();
  const std::size_t n_kv = shape_.n_kv_channels();
  for (std::size_t t = rows.first; t < rows.first + rows.n; t++) {
    angles.rotate_back(t, shape_.n_kv_heads, shape_.head_dim, key_gradients_.data() + t * n_kv);
    if (exact_) {
      angles.rotate_back(t, shape_.n_kv_heads, shape_.head_dim, far_keys_.data() + t * n_kv);
    }
    angles.rotate_back(t, shape_.n_heads, shape_.head_dim, query_gradients_.data() + t * n_q);
  }
}

void LayerPass::project_back(const LayerTensors& layer, const Rows& rows, const float* input,
                             const Activations& activations, float* gradient,
                             Scratch& scratch) const {
  const std::size_t n_embd = shape_.n_embd;
  const std::size_t n_q = shape_.n_query_channels();
  const std::size_t n_kv = shape_.n_kv_channels();
  const auto kv_stride = static_cast<std::ptrdiff_t>(n_kv);
  float* by_normed = scratch.norm.data();
  const float* queries =
      behind_norm(layer.q_norm, row_of(activations.raw_queries, rows.first, n_q),
                  query_gradients_.data() + rows.first * n_q, rows.n * shape_.n_heads, scratch);
  linear(table_, queries, n_q, rows.n, q_, {}, by_normed);
  const float* keys =
      behind_norm(layer.k_norm, row_of(activations.raw_keys, rows.first, n_kv),
                  key_gradients_.data() + rows.first * n_kv, rows.n * shape_.n_kv_heads, scratch);
  table_.multiply({{keys, kv_stride, 1}, rows.n, k_.view(), 0, 0, by_normed, n_embd, true});
  const float* values = value_gradients_.data() + rows.first * n_kv;
  table_.multiply({{values, kv_stride, 1}, rows.n, v_.view(), 0, 0, by_normed, n_embd, true});
  norm_back(layer.attn_norm, input + rows.first * n_embd, by_normed, rows.n,
            gradient + rows.first * n_embd);
}

void LayerPass::backward(const LayerTensors& layer, const RopeAngles& angles, std::size_t n_tokens,
                         const float* input, Activations& activations, bool last, float* gradient) {
  attention_gradients_.resize(n_tokens * shape_.n_query_channels());
  query_gradients_.resize(n_tokens * shape_.n_query_channels());
  key_gradients_.resize(n_tokens * shape_.n_kv_channels());
  value_gradients_.resize(n_tokens * shape_.n_kv_channels());
  FarGradients far;
  if (exact_) {
    far_keys_.resize(n_tokens * shape_.n_kv_channels());
    far_values_.resize(n_tokens * shape_.n_kv_channels());
    far = {far_keys_.data(), far_values_.data()};
  }
  pack(layer, Direction::kBackward);
  for_rows(n_tokens, [&](const Rows& rows, Scratch& scratch) {
    feed_forward_back(layer, rows, activations, gradient, scratch);
  });
  attention_.backward(attention_shape(shape_, layer, n_tokens),
                      attention_rows(angles, n_tokens, activations),
                      {attention_gradients_.data(), query_gradients_.data(), key_gradients_.data(),
                       value_gradients_.data()},
                      exact_ ? &far : nullptr);
  for_rows(n_tokens, [&](const Rows& rows, Scratch& scratch) {
    rotate_back(angles, rows);
    if (!last) {
      project_back(layer, rows, input, activations, gradient, scratch);
    }
  });
}

}  // namespace cqkv
