// See rated_tensor.h.
#include "calibration/rated_tensor.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "calibration/bases.h"
#include "core/half.h"

namespace cqkv {
namespace {

// Groups of neighbouring channels with their own weights.
Result<TensorCodebook> learn_plain(const TensorSamples& samples, const CodecSpec& spec,
                                   const LearnOptions& options, ParallelFor& parallel) {
  auto learned =
      learn_tensor_codebook(learn_input(samples.shape, samples.learned, spec), options, parallel);
  if (!learned.ok()) {
    return learned.status();
  }
  return std::move(learned->codebook);
}

// Learns in a basis: rows as components in the metric, where distances are plain.
class BasisLearner {
 public:
  BasisLearner(const TensorSamples& samples, KvKind kind, const RateLearning& options,
               ParallelFor& parallel)
      : samples_(samples), options_(options), parallel_(parallel) {
    set_head_weights();
    BasisInput input;
    input.shape = samples.shape;
    input.rows = samples.learned.rows.data();
    input.n_rows = samples.learned.n_rows;
    input.weights = head_weights_;
    input.moments = &samples.moments;
    if (kind == KvKind::kKey) {
      keys_.emplace(input, options.rope_mode, parallel);
    } else {
      values_.emplace(input, parallel);
    }
  }

  // How much each row counts, [row, kv_head].
  std::span<const float> head_weights() const { return head_weights_; }

  // Groups must grow from call to call.
  Result<TensorCodebook> learn(const CodecSpec& spec) {
    auto basis = keys_ ? keys_->next(spec.group_dim, parallel_) : values_->of(spec.group_dim);
    if (!basis.ok()) {
      return basis.status();
    }
    const TensorSpec tensor_spec(spec, samples_.shape.n_kv_heads, samples_.shape.head_dim);
    set_rows(*basis, tensor_spec);
    set_weights(tensor_spec);
    LearnInput input = learn_input(samples_.shape, samples_.learned, spec);
    input.rows = rows_.data();
    input.weights = weights_;
    auto learned = learn_tensor_codebook(input, options_.learning, parallel_);
    if (!learned.ok()) {
      return learned.status();
    }
    // Before the basis is given away.
    const std::vector<float> centroids = centroids_of(learned->codebook, *basis);
    return TensorCodebook::create(tensor_spec, centroids, *std::move(basis));
  }

 private:
  // Tokens count by the size of their gradient, not by its square: ten of thirty thousand tokens
  // hold up to 70 % of the squares of a head, and centroids for them leave all others far away.
  void set_head_weights() {
    for (const float weight : samples_.learned.weights.at(samples_.shape.head_dim)) {
      head_weights_.push_back(std::sqrt(weight));
    }
  }

  void set_rows(const TensorBasis& basis, const TensorSpec& spec) {
    const auto n_channels = static_cast<std::size_t>(samples_.shape.n_channels());
    const std::size_t n_rows = samples_.learned.n_rows;
    rows_.resize(n_rows * n_channels);
    components_.resize(n_channels * static_cast<std::size_t>(parallel_.n_threads()));
    constexpr std::size_t kRows = 256;
    const auto n_tasks = static_cast<int>((n_rows + kRows - 1) / kRows);
    parallel_.run(n_tasks, [&](int task, int thread) {
      float* components = components_.data() + static_cast<std::size_t>(thread) * n_channels;
      const std::size_t first = static_cast<std::size_t>(task) * kRows;
      for (std::size_t t = first; t < std::min(n_rows, first + kRows); t++) {
        basis.to_components(samples_.learned.rows.data() + t * n_channels, components);
        to_plain(basis, spec, components, rows_.data() + t * n_channels);
      }
    });
  }

  // Components whose plain distances are those of the metric.
  static void to_plain(const TensorBasis& basis, const TensorSpec& spec, const float* components,
                       float* row) {
    if (!basis.has_metric()) {
      std::copy_n(components, spec.n_channels(), row);
      return;
    }
    for (int head = 0; head < spec.n_kv_heads(); head++) {
      for (int g = 0; g < spec.n_groups(head); g++) {
        basis.to_metric(head, g, components, row);
        components += spec.group_dim(head);
        row += spec.group_dim(head);
      }
    }
  }

  // Every group has its head's.
  void set_weights(const TensorSpec& spec) {
    const auto n_heads = static_cast<std::size_t>(spec.n_kv_heads());
    const auto n_groups = static_cast<std::size_t>(spec.n_groups(0));
    weights_.clear();
    weights_.reserve(samples_.learned.n_rows * n_heads * n_groups);
    for (const float weight : head_weights_) {
      weights_.insert(weights_.end(), n_groups, weight);
    }
  }

  // Centroids as components: out of the metric, whose matrices are upper triangles.
  static std::vector<float> centroids_of(const TensorCodebook& learned, const TensorBasis& basis) {
    std::vector<float> centroids(learned.centroids().size());
    std::transform(learned.centroids().begin(), learned.centroids().end(), centroids.begin(),
                   half_to_float);
    if (!basis.has_metric()) {
      return centroids;
    }
    const auto dim = static_cast<std::size_t>(learned.spec().group_dim(0));
    const auto n = static_cast<std::size_t>(learned.spec().n_centroids());
    for (std::size_t i = 0; i < centroids.size() / dim; i++) {
      const std::uint16_t* triangle = basis.parts().metric.data() + i / n * dim * dim;
      float* centroid = centroids.data() + i * dim;
      for (std::size_t row = dim; row-- > 0;) {
        double value = centroid[row];
        for (std::size_t column = row + 1; column < dim; column++) {
          value -= static_cast<double>(half_to_float(triangle[row * dim + column])) *
                   static_cast<double>(centroid[column]);
        }
        centroid[row] = static_cast<float>(
            value / static_cast<double>(half_to_float(triangle[row * dim + row])));
      }
    }
    return centroids;
  }

  const TensorSamples& samples_;
  const RateLearning& options_;
  ParallelFor& parallel_;
  std::optional<KeyBases> keys_;
  std::optional<ValueBases> values_;
  std::vector<float> rows_;
  std::vector<float> components_;    // [thread, n_channels]
  std::vector<float> head_weights_;  // [row, kv_head]
  std::vector<float> weights_;       // [row, code]
};

// The weighted mean of each head's rows, [n_channels]; `weights` [n_rows, n_channels / dim].
std::vector<float> mean_row(const TensorSamples& samples, std::span<const float> weights) {
  const SampleRows& in = samples.learned;
  const auto n_channels = static_cast<std::size_t>(samples.shape.n_channels());
  const std::size_t dim = n_channels * in.n_rows / weights.size();
  std::vector<double> sums(n_channels);
  std::vector<double> mass(n_channels);
  for (std::size_t t = 0; t < in.n_rows; t++) {
    for (std::size_t c = 0; c < n_channels; c++) {
      // A little for every row, so that there is a mean without any gradient.
      const double weight = 1e-30 + static_cast<double>(weights[(t * n_channels + c) / dim]);
      sums[c] += weight * static_cast<double>(in.rows[t * n_channels + c]);
      mass[c] += weight;
    }
  }
  std::vector<float> mean(n_channels);
  std::transform(sums.begin(), sums.end(), mass.begin(), mean.begin(),
                 [](double sum, double all) { return static_cast<float>(sum / all); });
  return mean;
}

// All heads without codes, in the basis of a codebook that has some.
Result<TensorCodebook> without_codes(const TensorCodebook& coded, const std::vector<float>& mean) {
  const TensorSpec spec(coded.spec().code_bits(),
                        std::vector<int>(static_cast<std::size_t>(coded.n_kv_heads()), 0),
                        coded.head_dim());
  TensorBasis::Parts parts = coded.basis().parts();
  parts.metric.clear();
  auto basis = TensorBasis::create(spec, std::move(parts));
  if (!basis.ok()) {
    return basis.status();
  }
  std::vector<float> components(mean.size());
  basis->to_components(mean.data(), components.data());
  return TensorCodebook::create(spec, components, *std::move(basis));
}

// Adds one learned rate and what it costs.
void add_rate(const TensorSamples& samples, TensorCodebook codebook, RatedTensor& tensor) {
  const SampleRows& out = samples.held_out;
  const std::vector<double> losses =
      coding_losses(codebook, out.rows.data(), out.gradients.data(), out.n_rows);
  for (std::size_t head = 0; head < losses.size(); head++) {
    const TensorSpec& spec = codebook.spec();
    const int n_bits = spec.n_codes(static_cast<int>(head)) * spec.code_bits();
    tensor.heads[head].push_back(
        {spec.group_dims()[head], static_cast<double>(n_bits), losses[head]});
  }
  tensor.codebooks.push_back(std::move(codebook));
}

template <typename T>
void append(const std::vector<T>& from, std::size_t first, std::size_t n, std::vector<T>& to) {
  if (!from.empty()) {
    to.insert(to.end(), from.begin() + static_cast<std::ptrdiff_t>(first),
              from.begin() + static_cast<std::ptrdiff_t>(first + n));
  }
}

// One head's share of a basis of heads that are alike.
void append_basis(const TensorCodebook& codebook, std::size_t head, TensorBasis::Parts& parts) {
  const TensorBasis::Parts& from = codebook.basis().parts();
  const auto dim = static_cast<std::size_t>(codebook.head_dim());
  const auto group_dim = static_cast<std::size_t>(codebook.spec().group_dim(0));
  append(from.order, head * dim, dim, parts.order);
  append(from.rotation, head * dim * dim, dim * dim, parts.rotation);
  append(from.metric, head * dim * group_dim, dim * group_dim, parts.metric);
}

}  // namespace

Result<RatedTensor> learn_rates(const TensorSamples& samples, KvKind kind,
                                const RateLearning& options, ParallelFor& parallel) {
  RatedTensor result;
  result.heads.resize(static_cast<std::size_t>(samples.shape.n_kv_heads));
  std::optional<BasisLearner> learner;
  if (options.bases) {
    learner.emplace(samples, kind, options, parallel);
  }
  for (const CodecSpec& spec : kRates) {
    if (!spec.check(samples.shape.head_dim).ok()) {
      continue;
    }
    auto codebook =
        learner ? learner->learn(spec) : learn_plain(samples, spec, options.learning, parallel);
    if (!codebook.ok()) {
      return codebook.status();
    }
    add_rate(samples, *std::move(codebook), result);
  }
  if (result.codebooks.empty()) {
    return unsupported("heads of " + std::to_string(samples.shape.head_dim) +
                       " channels have no groups of 1 to 64");
  }
  const TensorCodebook& coarsest = result.codebooks.back();
  const std::vector<float> mean = mean_row(
      samples, learner ? learner->head_weights()
                       : std::span(samples.learned.weights.at(coarsest.spec().group_dim(0))));
  auto codebook = without_codes(coarsest, mean);
  if (!codebook.ok()) {
    return codebook.status();
  }
  add_rate(samples, *std::move(codebook), result);
  return result;
}

Result<TensorCodebook> assemble(const RatedTensor& tensor, const std::size_t* chosen) {
  std::vector<int> dims;
  std::vector<float> centroids;
  TensorBasis::Parts parts;
  for (std::size_t head = 0; head < tensor.heads.size(); head++) {
    const TensorCodebook& codebook = tensor.codebooks[chosen[head]];
    const auto kv_head = static_cast<int>(head);
    dims.push_back(codebook.spec().group_dims()[head]);
    for (int group = 0; group < codebook.spec().n_groups(kv_head); group++) {
      const std::vector<float> floats = codebook.group_floats(kv_head, group);
      centroids.insert(centroids.end(), floats.begin(), floats.end());
    }
    append_basis(codebook, head, parts);
  }
  const TensorCodebook& any = tensor.codebooks.front();
  const TensorSpec spec(any.spec().code_bits(), dims, any.head_dim());
  auto basis = TensorBasis::create(spec, std::move(parts));
  if (!basis.ok()) {
    return basis.status();
  }
  return TensorCodebook::create(spec, centroids, *std::move(basis));
}

}  // namespace cqkv
