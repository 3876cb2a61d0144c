// SampleCollector; see samples.h.
#include "calibration/samples.h"

#include <string>

namespace cqkv {
namespace {

void append_weights(const KvRows& rows, int group_dim, std::vector<float>& weights) {
  const std::size_t n_groups = rows.n_tokens * rows.shape.n_channels() / group_dim;
  for (std::size_t g = 0; g < n_groups; g++) {
    // In f64: squares of small gradients must not vanish before they are summed.
    double sum = 0.0;
    for (int c = 0; c < group_dim; c++) {
      const double gradient = rows.gradients[g * group_dim + c];
      sum += gradient * gradient;
    }
    weights.push_back(static_cast<float>(sum));
  }
}

}  // namespace

Status SampleCollector::add(const KvRows& rows) {
  const CodecSpec& codec = spec(rows.kind);
  if (codec.exact()) {
    return {};
  }
  auto [entry, is_new] = tensors_.try_emplace({rows.layer, rows.kind});
  TensorSamples& samples = entry->second;
  const auto n_channels = static_cast<std::size_t>(rows.shape.n_channels());
  if (is_new) {
    const Status legal = codec.check(rows.shape.head_dim);
    if (!legal.ok()) {
      tensors_.erase(entry);
      return {legal.code(), "layer " + std::to_string(rows.layer) + ", " +
                                std::string(kv_kind_name(rows.kind)) + ": " + legal.message()};
    }
    samples.shape = rows.shape;
    samples.rows.reserve(n_rows_ * n_channels);
    if (rows.gradients != nullptr) {
      samples.weights.reserve(n_rows_ * n_channels / codec.group_dim);
    }
  }
  if (!(samples.shape == rows.shape)) {
    return invalid_argument("layer " + std::to_string(rows.layer) + ": got rows of " +
                            std::to_string(rows.shape.n_kv_heads) + " heads of " +
                            std::to_string(rows.shape.head_dim) + " channels after rows of " +
                            std::to_string(samples.shape.n_kv_heads) + " of " +
                            std::to_string(samples.shape.head_dim));
  }
  CQKV_RETURN_IF_ERROR(check_finite(rows));
  samples.rows.insert(samples.rows.end(), rows.rows, rows.rows + rows.n_tokens * n_channels);
  if (rows.gradients != nullptr) {
    append_weights(rows, codec.group_dim, samples.weights);
  }
  samples.n_rows += rows.n_tokens;
  return {};
}

}  // namespace cqkv
