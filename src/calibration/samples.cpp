// SampleCollector and what it holds out; see samples.h.
#include "calibration/samples.h"

#include <algorithm>
#include <string>

namespace cqkv {
namespace {

constexpr std::size_t kHeldOutShare = 16;

void append_weights(const float* gradients, std::size_t n_channels, int group_dim,
                    std::vector<float>& weights) {
  for (std::size_t first = 0; first < n_channels; first += static_cast<std::size_t>(group_dim)) {
    // In f64: squares of small gradients must not vanish before they are summed.
    double sum = 0.0;
    for (int c = 0; c < group_dim; c++) {
      const double gradient = gradients[first + static_cast<std::size_t>(c)];
      sum += gradient * gradient;
    }
    weights.push_back(static_cast<float>(sum));
  }
}

// Of tokens [first, end), which may be none.
void add_moments(const KvRows& rows, std::size_t first, std::size_t end, GradientMoments& moments) {
  if (first < end) {
    const auto n_channels = static_cast<std::size_t>(rows.shape.n_channels());
    moments.add(rows.gradients + (first - rows.first_token) * n_channels, end - first);
  }
}

}  // namespace

TokenRange held_out_range(std::size_t sequence, std::size_t n_tokens) {
  const std::size_t part = 1 + (kHeldOutShare / 2 - 1 + sequence) % (kHeldOutShare - 1);
  return {n_tokens * part / kHeldOutShare, n_tokens * (part + 1) / kHeldOutShare};
}

LearnInput learn_input(const KvShape& shape, const SampleRows& rows, const CodecSpec& spec) {
  LearnInput input;
  input.spec = spec;
  input.n_kv_heads = shape.n_kv_heads;
  input.head_dim = shape.head_dim;
  input.rows = rows.rows.data();
  input.n_tokens = rows.n_rows;
  input.row_stride = static_cast<std::size_t>(shape.n_channels());
  const auto weights = rows.weights.find(spec.group_dim);
  if (weights != rows.weights.end()) {
    input.weights = weights->second;
  }
  return input;
}

void SampleCollector::expect(std::size_t n_learned, std::size_t n_held_out) {
  n_learned_ = n_learned;
  n_held_out_ = n_held_out;
}

void SampleCollector::reserve(const KvRows& rows, std::size_t n_rows, SampleRows& samples) const {
  const auto n_channels = static_cast<std::size_t>(rows.shape.n_channels());
  samples.rows.reserve(n_rows * n_channels);
  for (const int group_dim : weighted_dims(rows)) {
    samples.weights[group_dim].reserve(n_rows * n_channels / static_cast<std::size_t>(group_dim));
  }
}

// Channels that have one weight together.
std::vector<int> SampleCollector::weighted_dims(const KvRows& rows) const {
  if (rows.gradients == nullptr) {
    return {};
  }
  if (for_bases_) {
    return {rows.shape.head_dim};
  }
  std::vector<int> dims;
  for (const CodecSpec& spec : specs(rows.kind)) {
    if (spec.check(rows.shape.head_dim).ok()) {
      dims.push_back(spec.group_dim);
    }
  }
  return dims;
}

Status SampleCollector::begin_tensor(const KvRows& rows) {
  for (const CodecSpec& spec : specs(rows.kind)) {
    const Status legal = spec.check(rows.shape.head_dim);
    if (!legal.ok() && !for_rates_) {
      return {legal.code(), "layer " + std::to_string(rows.layer) + ", " +
                                std::string(kv_kind_name(rows.kind)) + ": " + legal.message()};
    }
  }
  TensorSamples& samples = tensors_[{rows.layer, rows.kind}];
  samples.shape = rows.shape;
  samples.moments = GradientMoments(for_bases_ ? rows.shape : KvShape());
  reserve(rows, n_learned_, samples.learned);
  reserve(rows, n_held_out_, samples.held_out);
  return {};
}

void SampleCollector::append(const KvRows& rows, std::size_t row, bool out,
                             SampleRows& samples) const {
  const auto n_channels = static_cast<std::size_t>(rows.shape.n_channels());
  const float* values = rows.rows + row * n_channels;
  samples.rows.insert(samples.rows.end(), values, values + n_channels);
  for (auto& [group_dim, weights] : samples.weights) {  // none without gradients
    append_weights(rows.gradients + row * n_channels, n_channels, group_dim, weights);
  }
  if (out && for_rates_ && rows.gradients != nullptr) {
    const float* gradients = rows.gradients + row * n_channels;
    samples.gradients.insert(samples.gradients.end(), gradients, gradients + n_channels);
  }
  samples.n_rows++;
}

Status SampleCollector::add(const KvRows& rows) {
  if (specs(rows.kind).empty()) {
    return {};
  }
  auto entry = tensors_.find({rows.layer, rows.kind});
  if (entry == tensors_.end()) {
    CQKV_RETURN_IF_ERROR(begin_tensor(rows));
    entry = tensors_.find({rows.layer, rows.kind});
  }
  TensorSamples& samples = entry->second;
  if (!(samples.shape == rows.shape)) {
    return invalid_argument("layer " + std::to_string(rows.layer) + ": got rows of " +
                            std::to_string(rows.shape.n_kv_heads) + " heads of " +
                            std::to_string(rows.shape.head_dim) + " channels after rows of " +
                            std::to_string(samples.shape.n_kv_heads) + " of " +
                            std::to_string(samples.shape.head_dim));
  }
  CQKV_RETURN_IF_ERROR(check_finite(rows));
  for (std::size_t row = 0; row < rows.n_tokens; row++) {
    const std::size_t token = rows.first_token + row;
    const bool out = token >= held_out_.first && token < held_out_.end;
    append(rows, row, out, out ? samples.held_out : samples.learned);
  }
  if (for_bases_ && rows.gradients != nullptr) {
    // Before the held-out tokens and after them.
    const std::size_t end = rows.first_token + rows.n_tokens;
    add_moments(rows, rows.first_token, std::min(end, held_out_.first), samples.moments);
    add_moments(rows, std::max(rows.first_token, held_out_.end), end, samples.moments);
  }
  return {};
}

}  // namespace cqkv
