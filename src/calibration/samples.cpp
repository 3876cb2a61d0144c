// SampleCollector and what it holds out; see samples.h.
#include "calibration/samples.h"

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>

namespace cqkv {
namespace {

constexpr std::size_t kHeldOutShare = 16;

// The tokens that `rows` have of those, which may be none.
TokenRange common(const KvRows& rows, TokenRange tokens) {
  const std::size_t end = rows.first_token + rows.n_tokens;
  const std::size_t first = std::clamp(tokens.first, rows.first_token, end);
  return {first, std::clamp(tokens.end, first, end)};
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

Status SampleCollector::append(const KvRows& rows, TokenRange tokens, SampleRows& samples) const {
  const auto n_channels = static_cast<std::size_t>(rows.shape.n_channels());
  const std::size_t first = (tokens.first - rows.first_token) * n_channels;
  const std::size_t end = first + tokens.size() * n_channels;
  samples.rows.insert(samples.rows.end(), rows.rows + first, rows.rows + end);
  samples.n_rows += tokens.size();
  for (auto& [group_dim, weights] : samples.weights) {  // none without gradients
    const std::size_t n_before = weights.size();
    weights.resize(n_before + (end - first) / static_cast<std::size_t>(group_dim));
    CQKV_RETURN_IF_ERROR(fisher_weights(rows.gradients + first, tokens.size(),
                                        rows.shape.n_channels(), group_dim,
                                        std::span(weights).subspan(n_before)));
  }
  return {};
}

Status SampleCollector::append_learned(const KvRows& rows, TokenRange tokens,
                                       TensorSamples& samples) const {
  CQKV_RETURN_IF_ERROR(append(rows, tokens, samples.learned));
  if (for_bases_ && rows.gradients != nullptr && tokens.size() > 0) {
    const auto n_channels = static_cast<std::size_t>(rows.shape.n_channels());
    samples.moments.add(rows.gradients + (tokens.first - rows.first_token) * n_channels,
                        tokens.size());
  }
  return {};
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
  const TokenRange out = common(rows, held_out_);
  CQKV_RETURN_IF_ERROR(append_learned(rows, common(rows, {0, held_out_.first}), samples));
  CQKV_RETURN_IF_ERROR(append(rows, out, samples.held_out));
  if (for_rates_ && rows.gradients != nullptr) {
    const auto n_channels = static_cast<std::size_t>(rows.shape.n_channels());
    const float* first = rows.gradients + (out.first - rows.first_token) * n_channels;
    samples.held_out.gradients.insert(samples.held_out.gradients.end(), first,
                                      first + out.size() * n_channels);
  }
  return append_learned(rows, common(rows, {held_out_.end, SIZE_MAX}), samples);
}

}  // namespace cqkv
