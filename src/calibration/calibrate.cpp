// The steps of calibrate(): texts, rows, codebooks, provenance.
#include "calibration/calibrate.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <new>
#include <span>
#include <utility>

#include "calibration/capture.h"
#include "calibration/fingerprint.h"
#include "calibration/gguf_file.h"
#include "calibration/gradient.h"
#include "calibration/samples.h"
#include "core/parallel.h"

namespace cqkv {
namespace {

using Sequences = std::vector<std::vector<Token>>;

// What every step needs.
struct Job {
  const CalibrationOptions& options;
  const CalibrationCallback& progress;
  const std::atomic<bool>* cancel;

  void report(std::string_view stage, std::size_t n_done, std::size_t n_total) const {
    if (progress) {
      progress({stage, n_done, n_total});
    }
  }
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Status check_options(const CalibrationOptions& options) {
  if (options.key_spec.exact() && options.value_spec.exact()) {
    return invalid_argument("calibration: keys and values are both exact, nothing to learn");
  }
  if (options.n_threads < 1) {
    return invalid_argument("calibration: got " + std::to_string(options.n_threads) +
                            " threads, want at least 1");
  }
  return {};
}

Status run_uniform(const Job& job, const Sequences& sequences, SampleCollector& samples) {
  auto capture = KvCapture::load(job.options.model_path, static_cast<int>(job.options.text.n_ctx),
                                 job.options.n_threads, !job.options.key_spec.exact());
  if (!capture.ok()) {
    return capture.status();
  }
  for (std::size_t i = 0; i < sequences.size(); i++) {
    job.report("running the model", i, sequences.size());
    CQKV_RETURN_IF_ERROR(capture->run(
        sequences[i], [&](const KvRows& rows) { return samples.add(rows); }, job.cancel));
  }
  return {};
}

Status run_fisher(const Job& job, const Sequences& sequences, SampleCollector& samples,
                  CalibrationStats& stats) {
  GradientOptions options;
  options.n_threads = job.options.n_threads;
  auto model = GradientModel::load(job.options.model_path, options);
  if (!model.ok()) {
    return model.status();
  }
  double loss = 0.0;
  std::size_t n_predicted = 0;
  for (std::size_t i = 0; i < sequences.size(); i++) {
    job.report("running the model", i, sequences.size());
    const auto mean = model->run(
        sequences[i], [&](const KvRows& rows) { return samples.add(rows); }, job.cancel);
    if (!mean.ok()) {
      return mean.status();
    }
    loss += *mean * static_cast<double>(sequences[i].size() - 1);
    n_predicted += sequences[i].size() - 1;
  }
  stats.mean_loss = loss / static_cast<double>(n_predicted);
  return {};
}

Status run_model(const Job& job, const Sequences& sequences, SampleCollector& samples,
                 CalibrationStats& stats) {
  const auto start = std::chrono::steady_clock::now();
  if (job.options.weighting == Weighting::kFisher) {
    CQKV_RETURN_IF_ERROR(run_fisher(job, sequences, samples, stats));
  } else {
    CQKV_RETURN_IF_ERROR(run_uniform(job, sequences, samples));
  }
  stats.seconds_model = seconds_since(start);
  return {};
}

Status learn(const Job& job, SampleCollector& samples, Calibration& calibration) {
  const auto start = std::chrono::steady_clock::now();
  ThreadParallelFor parallel(job.options.n_threads);
  auto& layers = calibration.codebook.layers;
  const std::size_t n_total = samples.tensors().size();
  for (std::size_t n_done = 0; !samples.tensors().empty(); n_done++) {
    job.report("learning codebooks", n_done, n_total);
    // Taken out, so that memory falls as codebooks are learned.
    const auto tensor = samples.tensors().extract(samples.tensors().begin());
    const auto [layer, kind] = tensor.key();
    const TensorSamples& rows = tensor.mapped();
    const LearnInput input{samples.spec(kind),
                           rows.shape.n_kv_heads,
                           rows.shape.head_dim,
                           rows.rows.data(),
                           rows.n_rows,
                           static_cast<std::size_t>(rows.shape.n_channels()),
                           std::span(rows.weights)};
    LearnOptions options;
    options.max_iterations = job.options.max_iterations;
    options.seed = job.options.seed;
    options.tensor = static_cast<std::uint32_t>(2 * layer + (kind == KvKind::kValue ? 1 : 0));
    options.cancelled = job.cancel;
    auto learned = learn_tensor_codebook(input, options, parallel);
    if (!learned.ok()) {
      return {learned.status().code(), "layer " + std::to_string(layer) + ", " +
                                           std::string(kv_kind_name(kind)) + ": " +
                                           learned.status().message()};
    }
    if (layers.size() <= static_cast<std::size_t>(layer)) {
      layers.resize(static_cast<std::size_t>(layer) + 1);
    }
    auto& side = kind == KvKind::kKey ? layers[layer].k : layers[layer].v;
    side.push_back(std::move(learned->codebook));
    calibration.stats.tensors.push_back({layer, kind, learned->stats});
  }
  calibration.stats.seconds_learning = seconds_since(start);
  return {};
}

Status describe(const CalibrationOptions& options, Codebook& codebook) {
  auto file = GgufFile::open(options.model_path);
  if (!file.ok()) {
    return file.status();
  }
  auto architecture = file->string("general.architecture");
  if (!architecture.ok()) {
    return architecture.status();
  }
  auto name = file->find_string("general.name");
  auto fingerprint = model_fingerprint(options.model_path);
  if (!fingerprint.ok()) {
    return fingerprint.status();
  }
  CodebookOrigin& origin = codebook.origin;
  origin.architecture = *architecture;
  origin.model_name = name.ok() ? name->value_or("") : "";
  if (origin.model_name.empty()) {
    origin.model_name = std::filesystem::path(options.model_path).stem().string();
  }
  origin.license = options.license;
  origin.weighting = weighting_name(options.weighting);
  const std::string keys = options.key_spec.name();
  const std::string values = options.value_spec.name();
  origin.name = origin.model_name + " cq-" + (keys == values ? keys : keys + "-" + values) + " " +
                origin.weighting;
  for (const auto& path : options.text.files) {
    origin.datasets.push_back(std::filesystem::path(path).filename().string());
  }
  origin.ctx_size = static_cast<std::uint32_t>(options.text.n_ctx);
  origin.seed = options.seed;
  origin.model_fingerprint = *std::move(fingerprint);
  // A layer without rows (recurrent, or sharing another's cache) has no codebook.
  codebook.layers.resize(std::max(codebook.layers.size(), origin.model_fingerprint.size()));
  codebook.window = options.window;
  codebook.sinks = options.sinks;
  return {};
}

Status run_calibration(const Job& job, Calibration& calibration) {
  CQKV_RETURN_IF_ERROR(check_options(job.options));
  // Before the long steps, so that a bad model file fails at once.
  CQKV_RETURN_IF_ERROR(describe(job.options, calibration.codebook));
  job.report("reading texts", 0, 1);
  auto tokenizer = Tokenizer::load(job.options.model_path);
  if (!tokenizer.ok()) {
    return tokenizer.status();
  }
  auto sequences = read_sequences(*tokenizer, job.options.text);
  if (!sequences.ok()) {
    return sequences.status();
  }
  CalibrationStats& stats = calibration.stats;
  stats.n_sequences = sequences->size();
  for (const auto& sequence : *sequences) {
    stats.n_tokens += sequence.size();
  }
  calibration.codebook.origin.n_tokens = static_cast<std::uint32_t>(stats.n_tokens);
  SampleCollector samples(job.options.key_spec, job.options.value_spec, stats.n_tokens);
  CQKV_RETURN_IF_ERROR(run_model(job, *sequences, samples, stats));
  return learn(job, samples, calibration);
}

}  // namespace

std::string_view weighting_name(Weighting weighting) {
  return weighting == Weighting::kUniform ? "uniform" : "fisher";
}

Result<Weighting> parse_weighting(std::string_view text) {
  for (const Weighting weighting : {Weighting::kUniform, Weighting::kFisher}) {
    if (text == weighting_name(weighting)) {
      return weighting;
    }
  }
  return invalid_argument("weights: got '" + std::string(text) + "', want uniform or fisher");
}

Result<Calibration> calibrate(const CalibrationOptions& options,
                              const CalibrationCallback& progress,
                              const std::atomic<bool>* cancel) {
  try {
    Calibration calibration;
    CQKV_RETURN_IF_ERROR(run_calibration({options, progress, cancel}, calibration));
    return calibration;
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::kResourceExhausted,
                  "calibration: not enough memory for the rows of " +
                      std::to_string(options.text.n_tokens) + " tokens; ask for fewer");
  }
}

}  // namespace cqkv
