// Runs the k-means problems of a cache tensor in parallel; see learn.h.
#include "codebook/learn.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "codebook/kmeans.h"
#include "core/half.h"

namespace cqkv {
namespace {

Status check(const LearnInput& input) {
  CQKV_RETURN_IF_ERROR(input.spec.check(input.head_dim));
  if (input.spec.exact()) {
    return invalid_argument("learning: configuration 'exact' has no centroids");
  }
  if (input.n_kv_heads <= 0) {
    return invalid_argument("learning: got " + std::to_string(input.n_kv_heads) +
                            " KV heads, want at least 1");
  }
  const std::size_t n_channels = static_cast<std::size_t>(input.n_kv_heads) * input.head_dim;
  if (input.row_stride < n_channels) {
    return invalid_argument(
        "learning: rows are " + std::to_string(input.row_stride) +
        " floats apart, want at least KV heads * head size = " + std::to_string(n_channels));
  }
  const std::size_t n_codes = n_channels / input.spec.group_dim;
  if (!input.weights.empty() && input.weights.size() != input.n_tokens * n_codes) {
    return invalid_argument(
        "learning: got " + std::to_string(input.weights.size()) +
        " weights, want none or tokens * groups = " + std::to_string(input.n_tokens * n_codes));
  }
  return {};
}

Status check_enough(const LearnInput& input) {
  const auto n_centroids = static_cast<std::size_t>(input.spec.n_centroids());
  if (input.n_tokens < n_centroids) {
    return invalid_argument("learning: got " + std::to_string(input.n_tokens) +
                            " vectors a group for the " + std::to_string(n_centroids) +
                            " centroids of " + input.spec.name() +
                            ", want at least as many; give more tokens or ask for fewer bits");
  }
  return {};
}

// Below this share of the squares rows differ by less than 16-bit floats round.
constexpr double kAlike = 0x1p-22;

// Of one group: what coding loses, by the variance. See relative_coding_error.
double group_error(const TensorCodebook& codebook, const LearnInput& input, int g,
                   const std::uint16_t* codes) {
  const int dim = input.spec.group_dim;
  const auto n_codes = static_cast<std::size_t>(codebook.n_codes());
  const std::uint16_t* centroids =
      codebook.group(g / codebook.spec().n_groups(0), g % codebook.spec().n_groups(0));
  double mass = 0;
  for (std::size_t t = 0; t < input.n_tokens && !input.weights.empty(); t++) {
    mass += static_cast<double>(input.weights[t * n_codes + g]);
  }
  const bool uniform = !(mass > 0);
  mass = uniform ? static_cast<double>(input.n_tokens) : mass;
  const auto weight = [&](std::size_t t) {
    return uniform ? 1.0 : static_cast<double>(input.weights[t * n_codes + g]);
  };
  const auto value = [&](std::size_t t, int j) {
    return static_cast<double>(
        input.rows[t * input.row_stride + static_cast<std::size_t>(g) * dim + j]);
  };
  double lost = 0;
  double spread = 0;
  double size = 0;
  for (int j = 0; j < dim; j++) {
    double mean = 0;
    for (std::size_t t = 0; t < input.n_tokens; t++) {
      mean += weight(t) * value(t, j) / mass;
    }
    for (std::size_t t = 0; t < input.n_tokens; t++) {
      const auto code = static_cast<std::size_t>(codes[t * n_codes + g]);
      const double error =
          value(t, j) - static_cast<double>(half_to_float(centroids[code * dim + j]));
      lost += weight(t) * error * error;
      spread += weight(t) * (value(t, j) - mean) * (value(t, j) - mean);
      size += weight(t) * value(t, j) * value(t, j);
    }
  }
  return spread > kAlike * size ? lost / spread : 0;
}

// The groups of one tensor, learned by several threads.
class TensorLearner {
 public:
  TensorLearner(const LearnInput& input, const LearnOptions& options, int n_threads)
      : input_(input),
        options_(options),
        n_groups_(input.head_dim / input.spec.group_dim),
        n_codes_(input.n_kv_heads * n_groups_),
        centroids_(static_cast<std::size_t>(n_codes_) * input.spec.n_centroids() *
                   input.spec.group_dim),
        solvers_(static_cast<std::size_t>(n_threads)),
        results_(static_cast<std::size_t>(n_codes_)),
        statuses_(static_cast<std::size_t>(n_codes_)) {}

  int n_codes() const { return n_codes_; }

  // Learns group `g`; may run on several threads for different groups.
  void learn(int g, int thread) {
    if (!failed_.load(std::memory_order_relaxed)) {
      try {
        statuses_[g] = solve(g, solvers_[thread]);
      } catch (const std::bad_alloc&) {
        statuses_[g] = {StatusCode::kResourceExhausted, "learning: out of memory"};
      }
      if (!statuses_[g].ok()) {
        failed_.store(true, std::memory_order_relaxed);
      } else if (options_.progress) {
        const std::lock_guard lock(progress_mutex_);
        options_.progress(++n_done_, n_codes_);
      }
    }
  }

  Result<LearnedTensor> finish() {
    for (const Status& status : statuses_) {
      CQKV_RETURN_IF_ERROR(status);
    }
    LearnStats stats;
    for (const KmeansResult& result : results_) {
      stats.start_objective += result.start_objective;
      stats.objective += result.objective;
      stats.spread += result.spread;
      stats.relative_error += result.spread > 0 ? result.objective / result.spread / n_codes_ : 0;
      stats.mean_iterations += static_cast<double>(result.iterations) / n_codes_;
      stats.max_iterations = std::max(stats.max_iterations, result.iterations);
      stats.n_converged += result.converged ? 1 : 0;
      stats.n_uniform_fallback += result.uniform_fallback ? 1 : 0;
    }
    auto codebook =
        TensorCodebook::create(input_.spec, input_.n_kv_heads, input_.head_dim, centroids_);
    CQKV_RETURN_IF_ERROR(codebook.status());
    return LearnedTensor{*std::move(codebook), stats};
  }

 private:
  Status solve(int g, KmeansSolver& solver) {
    KmeansProblem problem;
    problem.points = input_.rows + static_cast<std::size_t>(g) * input_.spec.group_dim;
    problem.n_points = input_.n_tokens;
    problem.point_stride = input_.row_stride;
    problem.dim = input_.spec.group_dim;
    problem.n_centroids = input_.spec.n_centroids();
    if (!input_.weights.empty()) {
      problem.weights = input_.weights.data() + g;
      problem.weight_stride = static_cast<std::size_t>(n_codes_);
    }
    KmeansOptions options;
    options.max_iterations = options_.max_iterations;
    options.tolerance = options_.tolerance;
    options.seed = options_.seed;
    options.stream = (static_cast<std::uint64_t>(options_.tensor) << 32U) + g;
    options.cancelled = options_.cancelled;
    options.kernels = options_.kernels;
    auto result = solver.solve(problem, options);
    if (!result.ok()) {
      return {result.status().code(), "KV head " + std::to_string(g / n_groups_) + ", group " +
                                          std::to_string(g % n_groups_) + ": " +
                                          result.status().message()};
    }
    std::copy(result->centroids.begin(), result->centroids.end(),
              centroids_.begin() + static_cast<std::ptrdiff_t>(result->centroids.size()) * g);
    result->centroids = {};
    results_[g] = *std::move(result);
    return {};
  }

  const LearnInput& input_;
  const LearnOptions& options_;
  int n_groups_;
  int n_codes_;
  std::vector<float> centroids_;  // [kv_head, group, centroid, group_dim]
  std::vector<KmeansSolver> solvers_;
  std::vector<KmeansResult> results_;  // [code], centroids taken out
  std::vector<Status> statuses_;
  std::atomic<bool> failed_{false};
  std::mutex progress_mutex_;
  int n_done_ = 0;
};

}  // namespace

Result<LearnedTensor> learn_tensor_codebook(const LearnInput& input, const LearnOptions& options,
                                            ParallelFor& parallel) {
  CQKV_RETURN_IF_ERROR(check(input));
  CQKV_RETURN_IF_ERROR(check_enough(input));
  TensorLearner learner(input, options, parallel.n_threads());
  parallel.run(learner.n_codes(), [&](int g, int thread) { learner.learn(g, thread); });
  return learner.finish();
}

Result<double> relative_coding_error(const TensorCodebook& codebook, const LearnInput& input,
                                     ParallelFor& parallel) {
  CQKV_RETURN_IF_ERROR(check(input));
  if (!codebook.spec().uniform() || !(input.spec == codebook.spec().spec(0)) ||
      input.n_kv_heads != codebook.n_kv_heads() || input.head_dim != codebook.head_dim()) {
    return invalid_argument(
        "coding error: got rows for " + input.spec.name() + " of " +
        std::to_string(input.n_kv_heads) + " x " + std::to_string(input.head_dim) +
        " channels, the codebook is " + codebook.spec().name() + " of " +
        std::to_string(codebook.n_kv_heads()) + " x " + std::to_string(codebook.head_dim()));
  }
  if (input.n_tokens == 0) {
    return invalid_argument("coding error: got no rows, want at least one");
  }
  const auto n_codes = static_cast<std::size_t>(codebook.n_codes());
  std::vector<std::uint16_t> codes(input.n_tokens * n_codes);
  std::vector<double> errors(n_codes);
  parallel.run(codebook.n_codes(), [&](int g, int /*thread*/) {
    codebook.encode_groups(input.rows, input.n_tokens, input.row_stride, g, 1, codes.data());
    errors[g] = group_error(codebook, input, g, codes.data());
  });
  double sum = 0;
  for (const double error : errors) {
    sum += error;
  }
  return sum / static_cast<double>(n_codes);
}

Status fisher_weights(const float* gradients, std::size_t n_tokens, int n_channels, int group_dim,
                      std::span<float> weights) {
  if (n_channels <= 0 || group_dim <= 0 || n_channels % group_dim != 0) {
    return invalid_argument("Fisher weights: groups of " + std::to_string(group_dim) +
                            " do not divide " + std::to_string(n_channels) + " channels");
  }
  const std::size_t n_weights = n_tokens * static_cast<std::size_t>(n_channels / group_dim);
  if (weights.size() != n_weights) {
    return invalid_argument("Fisher weights: got room for " + std::to_string(weights.size()) +
                            ", want tokens * groups = " + std::to_string(n_weights));
  }
  for (float& weight : weights) {
    double sum = 0;
    for (int c = 0; c < group_dim; c++, gradients++) {
      sum += static_cast<double>(*gradients) * *gradients;
    }
    weight = static_cast<float>(sum);
  }
  return {};
}

}  // namespace cqkv
