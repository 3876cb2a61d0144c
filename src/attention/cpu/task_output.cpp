// See task_output.h.
#include "attention/cpu/task_output.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/half.h"

namespace cqkv {
namespace {

// Every cell of a head without codes has the same value, which steps leave out: it is there as
// often as the weights say.
void add_value_mean(const CallContext& context, int kv_head, int n_rows, SoftmaxState state) {
  const std::uint16_t* mean = context.call.v.codec->codebook().group(kv_head, 0);
  for (int d = 0; d < context.call.head_dim_v; d++) {
    const float value = half_to_float(mean[d]);
    for (int r = 0; r < n_rows; r++) {
      state.out[static_cast<std::size_t>(r) * context.plan.channels + d] += value * state.sums[r];
    }
  }
}

// to[d] = row[d] * factor, of n floats at any address.
void write_row(const float* row, float factor, int n, std::uint8_t* to) {
  float result[kBlockCells];
  for (int d = 0; d < n; d += kBlockCells) {
    const int n_part = std::min(kBlockCells, n - d);
    for (int i = 0; i < n_part; i++) {
      // Adding 0 turns -0 into 0: whether a zero got a sign depends on skipped blocks.
      result[i] = row[d + i] * factor + 0.0F;
    }
    std::memcpy(to + d * sizeof(float), result, n_part * sizeof(float));
  }
}

}  // namespace

void TaskOutput::write(TaskState& total) {
  const AttentionCall& call = context_.call;
  const bool turned = call.v.codec != nullptr && call.v.codec->basis().has_rotation();
  std::fill_n(step_.rescale.data(), task_.n_rows, 1.0F);  // products are added
  for (int index = 0; index < task_.n_kv; index++) {
    const int kv_head = task_.first_kv + index;
    const SoftmaxState state = total.head(index, task_.n_rows);
    if (!context_.has_value_codes(kv_head)) {
      add_value_mean(context_, kv_head, task_.n_rows, state);
    }
    if (turned) {
      turn_values(kv_head, state);
    }
    if (call.key_sums != nullptr) {
      add_key_sums(kv_head, state);
    }
    write_head(kv_head, state);
  }
}

// out[r] += rows[r] * matrix [n_channels, stride]: 64 channels of the rows take the place of
// probabilities, rows of the matrix that of values. `rows` and `out` have the stride of a state.
void TaskOutput::add_product(const float* rows, int n_channels, const float* matrix,
                             std::size_t stride, float* out) {
  const auto channels = static_cast<std::size_t>(context_.plan.channels);
  for (int first = 0; first < n_channels; first += kBlockCells) {
    const int n = std::min(kBlockCells, n_channels - first);
    for (int r = 0; r < task_.n_rows; r++) {
      float* row = step_.scores.from(static_cast<std::size_t>(r) * kBlockCells);
      std::fill(std::copy_n(rows + r * channels + first, n, row), row + kBlockCells, 0.0F);
    }
    context_.kernel.accumulate_rows(step_.scores.data(), task_.n_rows, matrix + first * stride,
                                    stride, context_.plan.channels_v, step_.rescale.data(), out,
                                    channels);
  }
}

// Sums over components of values become sums over channels.
void TaskOutput::turn_values(int kv_head, SoftmaxState state) {
  const auto channels = static_cast<std::size_t>(context_.plan.channels);
  const TensorBasis& basis = context_.call.v.codec->basis();
  float* components = spare_.all().out;
  std::copy_n(state.out, task_.n_rows * channels, components);
  for (int r = 0; r < task_.n_rows; r++) {
    std::fill_n(state.out + r * channels, context_.plan.channels_v, 0.0F);
  }
  add_product(components, context_.call.head_dim_v, basis.inverse(kv_head), basis.inverse_stride(),
              state.out);
}

// Adds the products of the matrices with the sums over keys to the sums over values.
void TaskOutput::add_key_sums(int kv_head, SoftmaxState state) {
  const KeySums& key_sums = *context_.call.key_sums;
  add_product(state.out + context_.plan.channels_v, key_sums.n_channels(), key_sums.matrix(kv_head),
              key_sums.matrix_stride(), state.out);
}

void TaskOutput::write_head(int kv_head, const SoftmaxState& state) {
  const AttentionCall& call = context_.call;
  const int heads_per_kv = context_.plan.heads_per_kv;
  const float* row = state.out;
  for (int r = 0; r < task_.n_rows; r++, row += context_.plan.channels) {
    const int query = task_.first_query + r / heads_per_kv;
    const int head = kv_head * heads_per_kv + r % heads_per_kv;
    float sum = state.sums[r];
    if (call.sink_logits != nullptr) {
      sum += std::exp(call.sink_logits[head] - state.maxima[r]);
    }
    const float factor = sum == 0.0F ? 0.0F : 1.0F / sum;  // NaN of a query that is none
    write_row(row, factor, call.head_dim_v,
              call.out + head * call.out_head_bytes + query * call.out_bytes);
  }
}

}  // namespace cqkv
