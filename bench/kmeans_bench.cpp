// Times learning the codebook of one cache tensor on synthetic rows and extrapolates to
// all tensors of SmolLM2-135M. The rows are like keys: channels of very different spread
// and offset, correlated, heavy tails; weights spread over decades. "With the cores idle"
// is processor time over threads: what counts on a machine shared with others.
//
//     kmeans_bench [8c8b] [threads] [level] [KV heads] [tokens] [max iterations] [tolerance]
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>
#include <vector>

#include "codebook/kmeans.h"
#include "codebook/kmeans_kernels.h"
#include "codebook/learn.h"
#include "core/rng.h"
#include "isa/select.h"

namespace {

constexpr int kHeadDim = 64;
constexpr int kModelTensors = 60;
constexpr int kModelHeads = 3;

std::vector<float> make_rows(std::size_t n_tokens, int n_channels) {
  cqkv::Rng rng(7);
  std::vector<float> offset(n_channels);
  std::vector<float> spread(n_channels);
  for (int c = 0; c < n_channels; c++) {
    offset[c] = static_cast<float>(2 * rng.normal());
    spread[c] = static_cast<float>(std::exp(0.7 * rng.normal()));
  }
  std::vector<float> rows(n_tokens * n_channels);
  for (std::size_t t = 0; t < n_tokens; t++) {
    const double topic = rng.normal();
    const double burst = std::exp(0.3 * rng.normal());
    for (int c = 0; c < n_channels; c++) {
      const double share = c % 3 == 0 ? 0.8 : 0.3;
      const double value = share * topic + std::sqrt(1 - share * share) * rng.normal();
      rows[t * n_channels + c] = offset[c] + spread[c] * static_cast<float>(burst * value);
    }
  }
  return rows;
}

std::vector<float> make_weights(std::size_t n) {
  cqkv::Rng rng(8);
  std::vector<float> weights(n);
  for (float& weight : weights) {
    weight = static_cast<float>(1e-9 * std::exp(1.5 * rng.normal()));
  }
  return weights;
}

const cqkv::kmeans::Kernels* find_level(const std::string& name) {
  for (const auto* kernels : cqkv::kmeans::supported_kernels()) {
    if (name == cqkv::isa::level_name(kernels->level)) {
      return kernels;
    }
  }
  return &cqkv::kmeans::active_kernels();
}

}  // namespace

int main(int argc, char** argv) {
  const auto arg = [&](int i, const char* standard) { return argc > i ? argv[i] : standard; };
  const auto spec = cqkv::CodecSpec::parse(arg(1, "8c8b"));
  if (!spec.ok()) {
    std::fprintf(stderr, "%s\n", spec.status().message().c_str());
    return 2;
  }
  const auto number = [&](int i, const char* standard) {
    return std::strtod(arg(i, standard), nullptr);
  };
  const int n_threads = static_cast<int>(number(2, "2"));
  cqkv::LearnInput input;
  cqkv::LearnOptions options;
  options.kernels = find_level(arg(3, "best"));
  options.max_iterations = static_cast<int>(number(6, "100"));
  options.tolerance = number(7, "1e-5");
  input.spec = *spec;
  input.n_kv_heads = static_cast<int>(number(4, "3"));
  input.head_dim = kHeadDim;
  input.n_tokens = static_cast<std::size_t>(number(5, "32768"));
  input.row_stride = static_cast<std::size_t>(input.n_kv_heads) * kHeadDim;
  const auto rows = make_rows(input.n_tokens, static_cast<int>(input.row_stride));
  const auto weights = make_weights(input.n_tokens * input.row_stride / spec->group_dim);
  input.rows = rows.data();
  input.weights = weights;

  cqkv::ThreadParallelFor parallel(n_threads);
  const auto begin = std::chrono::steady_clock::now();
  const std::clock_t cpu_begin = std::clock();
  const auto learned = cqkv::learn_tensor_codebook(input, options, parallel);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  const double cpu_seconds = static_cast<double>(std::clock() - cpu_begin) / CLOCKS_PER_SEC;
  if (!learned.ok()) {
    std::fprintf(stderr, "%s\n", learned.status().message().c_str());
    return 1;
  }
  const auto& stats = learned->stats;
  const std::string level(cqkv::isa::level_name(options.kernels->level));
  const int n_problems = learned->codebook.n_codes();
  const double n_model_problems =
      static_cast<double>(kModelTensors) * kModelHeads * kHeadDim / spec->group_dim;
  std::printf("%s %s, %d threads, %d problems of %zu points: %.3f s, %.2f ms CPU a problem\n",
              spec->name().c_str(), level.c_str(), n_threads, n_problems, input.n_tokens,
              took.count(), 1e3 * cpu_seconds / n_problems);
  std::printf("SmolLM2-135M (%.0f problems): %.1f s at this speed, %.1f s with the cores idle\n",
              n_model_problems, took.count() / n_problems * n_model_problems,
              cpu_seconds / n_problems * n_model_problems / n_threads);
  std::printf("start %.6g, end %.6g, relative error %.5f, iterations mean %.1f, most %d\n",
              stats.start_objective, stats.objective, stats.relative_error, stats.mean_iterations,
              stats.max_iterations);
  return 0;
}
