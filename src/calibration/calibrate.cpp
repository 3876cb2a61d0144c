// The steps of calibrate(): texts, rows, codebooks, provenance.
#include "calibration/calibrate.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <map>
#include <new>
#include <optional>
#include <span>
#include <utility>

#include "calibration/budget.h"
#include "calibration/fingerprint.h"
#include "calibration/rated_tensor.h"
#include "calibration/samples.h"
#include "calibration/text_check.h"
#include "core/parallel.h"
#include "model_pass/capture.h"
#include "model_pass/gguf_file.h"
#include "model_pass/gradient.h"

namespace cqkv {
namespace {

using Sequences = std::vector<Sequence>;

constexpr KvKind kBothKinds[] = {KvKind::kKey, KvKind::kValue};

// One sequence to measure costs on for so many to learn from.
constexpr std::size_t kMeasuredShare = 4;

// How often costs are measured again in the cache that the last ones led to.
constexpr std::size_t kCostPasses = 2;

// What every step needs.
struct Job {
  const CalibrationOptions& options;
  const CalibrationEvents& events;
  const std::atomic<bool>* cancel;
  RopeMode rope_mode = RopeMode::kNormal;  // known once the model is loaded for gradients

  void report(std::string_view stage, std::size_t n_done, std::size_t n_total) const {
    if (events.progress) {
      events.progress({stage, n_done, n_total});
    }
  }

  void warn(const std::string& message) const {
    if (events.warning && !message.empty()) {
      events.warning(message);
    }
  }
};

// The different codecs of one side.
std::vector<CodecSpec> coded_specs(const std::vector<KvConfig>& configs, KvKind kind) {
  std::vector<CodecSpec> specs;
  for (const KvConfig& config : configs) {
    const CodecSpec& spec = config.spec(kind);
    if (!spec.exact() && std::find(specs.begin(), specs.end(), spec) == specs.end()) {
      specs.push_back(spec);
    }
  }
  return specs;
}

// The one with the most centroids.
CodecSpec finest_spec(const std::vector<KvConfig>& configs) {
  CodecSpec finest;
  for (const KvKind kind : kBothKinds) {
    for (const CodecSpec& spec : coded_specs(configs, kind)) {
      finest = spec.code_bits > finest.code_bits ? spec : finest;
    }
  }
  return finest;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Status check_configs(const std::vector<KvConfig>& configs) {
  if (configs.empty()) {
    return invalid_argument("calibration: got no configuration, want at least one");
  }
  for (auto config = configs.begin(); config != configs.end(); config++) {
    if (config->keys.exact() && config->values.exact()) {
      return invalid_argument("calibration: keys and values are both exact, nothing to learn");
    }
    if (std::find(configs.begin(), config, *config) != config) {
      return invalid_argument("calibration: got configuration " + config->name() +
                              " twice, want each once");
    }
  }
  return {};
}

Status check_budgets(const CalibrationOptions& options) {
  for (auto bits = options.bits.begin(); bits != options.bits.end(); bits++) {
    if (!(*bits >= 0.125 && *bits <= 4)) {
      return invalid_argument("calibration: got a budget of " + std::to_string(*bits) +
                              " bits a channel, want 0.125 to 4");
    }
    if (std::find(options.bits.begin(), bits, *bits) != bits) {
      return invalid_argument("calibration: got a budget of " + budget_name(*bits) +
                              " twice, want each once");
    }
  }
  if (options.weighting != Weighting::kFisher) {
    return invalid_argument(
        "calibration: rates by head are chosen by gradients; they need Fisher weights");
  }
  return {};
}

Status check_options(const CalibrationOptions& options) {
  CQKV_RETURN_IF_ERROR(options.bits.empty() ? check_configs(options.configs)
                                            : check_budgets(options));
  const std::size_t n_exact = std::size_t{options.window} + options.sinks;
  if (options.far_gradients && options.text.n_ctx <= n_exact) {
    return invalid_argument("calibration: got sequences of " + std::to_string(options.text.n_ctx) +
                            " tokens for a window and sinks of " + std::to_string(n_exact) +
                            ", so that nothing would be read as codes; want longer sequences, best "
                            "several times as long (--ctx-size)");
  }
  if (options.n_threads < 1) {
    return invalid_argument("calibration: got " + std::to_string(options.n_threads) +
                            " threads, want at least 1");
  }
  return {};
}

// Learning would say the same after the model has run for minutes.
Status check_enough(const CalibrationStats& stats, const CodecSpec& spec) {
  const std::size_t n_learned = stats.n_tokens - stats.n_held_out;
  if (n_learned < static_cast<std::size_t>(spec.n_centroids())) {
    return invalid_argument("calibration: got " + std::to_string(n_learned) +
                            " tokens to learn from (" + std::to_string(stats.n_tokens) + " less " +
                            std::to_string(stats.n_held_out) + " held out), want at least " +
                            std::to_string(spec.n_centroids()) + ", one for each centroid of " +
                            spec.name() +
                            ", and for a good codebook many times that; give more tokens "
                            "(--n-tokens, more text) or ask for fewer bits");
  }
  return {};
}

Status run_uniform(const Job& job, const Sequences& sequences, SampleCollector& samples) {
  const auto& configs = job.options.configs;
  const bool wants_keys = std::any_of(configs.begin(), configs.end(),
                                      [](const KvConfig& config) { return !config.keys.exact(); });
  auto capture = KvCapture::load(job.options.model_path, static_cast<int>(job.options.text.n_ctx),
                                 job.options.n_threads, wants_keys);
  if (!capture.ok()) {
    return capture.status();
  }
  for (std::size_t i = 0; i < sequences.size(); i++) {
    job.report("running the model", i, sequences.size());
    const std::vector<Token>& tokens = sequences[i].tokens;
    samples.begin_sequence(i, tokens.size());
    CQKV_RETURN_IF_ERROR(capture->run(
        tokens, [&](const KvRows& rows) { return samples.add(rows); }, job.cancel));
  }
  return {};
}

// Without far gradients every query counts, and none reads anything exactly.
Result<GradientModel> load_gradients(const Job& job) {
  GradientOptions options;
  options.n_threads = job.options.n_threads;
  if (job.options.far_gradients) {
    options.exact = ExactTokens{job.options.window, job.options.sinks};
  } else if (!job.options.bits.empty()) {
    options.exact = ExactTokens{};
  }
  return GradientModel::load(job.options.model_path, options);
}

Status run_fisher(Job& job, const Sequences& sequences, SampleCollector& samples,
                  CalibrationStats& stats) {
  auto model = load_gradients(job);
  if (!model.ok()) {
    return model.status();
  }
  job.rope_mode = model->rope_mode();
  double loss = 0.0;
  std::size_t n_predicted = 0;
  for (std::size_t i = 0; i < sequences.size(); i++) {
    job.report("running the model", i, sequences.size());
    const std::vector<Token>& tokens = sequences[i].tokens;
    samples.begin_sequence(i, tokens.size());
    const auto mean = model->run(
        tokens, [&](const KvRows& rows) { return samples.add(rows); }, job.cancel);
    if (!mean.ok()) {
      return mean.status();
    }
    loss += *mean * static_cast<double>(tokens.size() - 1);
    n_predicted += tokens.size() - 1;
  }
  stats.mean_loss = loss / static_cast<double>(n_predicted);
  return {};
}

Status run_model(Job& job, const Sequences& sequences, SampleCollector& samples,
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

// One side of a layer, learned for one codec.
struct LearnedSide {
  LearnedTensor learned;
  double held_out_error = 0;
};

LearnOptions learn_options(const Job& job, const SampleCollector::Key& key) {
  const auto [layer, kind] = key;
  LearnOptions options;
  options.max_iterations = job.options.max_iterations;
  options.seed = job.options.seed;
  options.tensor = static_cast<std::uint32_t>(2 * layer + (kind == KvKind::kValue ? 1 : 0));
  options.cancelled = job.cancel;
  return options;
}

Status at_side(const SampleCollector::Key& key, const Status& status) {
  const auto [layer, kind] = key;
  return {status.code(), "layer " + std::to_string(layer) + ", " + std::string(kv_kind_name(kind)) +
                             ": " + status.message()};
}

Result<LearnedSide> learn_side(const Job& job, const SampleCollector::Key& key,
                               const TensorSamples& samples, const CodecSpec& spec) {
  ThreadParallelFor parallel(job.options.n_threads);
  auto learned = learn_tensor_codebook(learn_input(samples.shape, samples.learned, spec),
                                       learn_options(job, key), parallel);
  if (!learned.ok()) {
    return at_side(key, learned.status());
  }
  LearnedSide side{*std::move(learned), 0};
  if (samples.held_out.n_rows > 0) {
    const auto error = relative_coding_error(
        side.learned.codebook, learn_input(samples.shape, samples.held_out, spec), parallel);
    CQKV_RETURN_IF_ERROR(error.status());
    side.held_out_error = *error;
  }
  return side;
}

// Where a codebook keeps the keys or values of a layer.
std::vector<TensorCodebook>& side_of(const SampleCollector::Key& key, Codebook& codebook) {
  const auto [layer, kind] = key;
  auto& layers = codebook.layers;
  if (layers.size() <= static_cast<std::size_t>(layer)) {
    layers.resize(static_cast<std::size_t>(layer) + 1);
  }
  return kind == KvKind::kKey ? layers[layer].k : layers[layer].v;
}

void put_side(const SampleCollector::Key& key, const LearnedSide& side, CalibratedCodebook& out) {
  const auto [layer, kind] = key;
  side_of(key, out.codebook).push_back(side.learned.codebook);
  out.tensors.push_back({layer, kind, side.learned.stats, side.held_out_error});
}

// One side of a layer for all configurations; those that code it alike share the work.
Status learn_tensor(const Job& job, const SampleCollector::Key& key, const TensorSamples& samples,
                    std::vector<CalibratedCodebook>& codebooks) {
  for (const CodecSpec& spec : coded_specs(job.options.configs, key.second)) {
    const auto side = learn_side(job, key, samples, spec);
    if (!side.ok()) {
      return side.status();
    }
    for (CalibratedCodebook& out : codebooks) {
      if (out.config.spec(key.second) == spec) {
        put_side(key, *side, out);
      }
    }
  }
  return {};
}

Result<RatedSide> learn_rated_side(const Job& job, const SampleCollector::Key& key,
                                   const TensorSamples& samples) {
  RateLearning options;
  options.learning = learn_options(job, key);
  // What later iterations gain does not reach held-out text, and there are seven rates to learn.
  options.learning.tolerance = 1e-3;
  options.bases = job.options.bases;
  options.rope_mode = job.rope_mode;
  ThreadParallelFor alone(1);
  auto tensor = learn_rates(samples, key.second, options, alone);
  if (!tensor.ok()) {
    return at_side(key, tensor.status());
  }
  return RatedSide{key.first, key.second, *std::move(tensor)};
}

using Tensor = std::map<SampleCollector::Key, TensorSamples>::node_type;

// Every rate of some tensors, each by one thread: at coarse rates one has too few groups to share.
Status learn_together(const Job& job, const std::vector<Tensor>& tensors,
                      std::vector<RatedSide>& sides) {
  std::vector<std::optional<Result<RatedSide>>> learned(tensors.size());
  ThreadParallelFor parallel(job.options.n_threads);
  parallel.run(static_cast<int>(tensors.size()), [&](int i, int /*thread*/) {
    const Tensor& tensor = tensors[static_cast<std::size_t>(i)];
    learned[static_cast<std::size_t>(i)].emplace(
        learn_rated_side(job, tensor.key(), tensor.mapped()));
  });
  for (auto& side : learned) {
    CQKV_RETURN_IF_ERROR(side->status());
    sides.push_back(std::move(**side));
  }
  return {};
}

// As many tensors at a time as there are threads, taken out, so that memory falls as codebooks are
// learned.
Status learn_rated_sides(const Job& job, SampleCollector& samples, std::vector<RatedSide>& sides) {
  auto& left = samples.tensors();
  const std::size_t n_total = left.size();
  while (!left.empty()) {
    job.report("learning codebooks", sides.size(), n_total);
    std::vector<Tensor> batch;
    while (!left.empty() && batch.size() < static_cast<std::size_t>(job.options.n_threads)) {
      batch.push_back(left.extract(left.begin()));
    }
    CQKV_RETURN_IF_ERROR(learn_together(job, batch, sides));
  }
  return {};
}

// What the rates cost in a model whose cache is coded with this codebook, on texts that it was not
// learned from. `n_done` and `n_total` count sequences over all measurements.
Status measure_costs(const Job& job, GradientModel& model, const Sequences& sequences,
                     const Codebook& codebook, CostMeter& meter, std::size_t& n_done,
                     std::size_t n_total) {
  CQKV_RETURN_IF_ERROR(model.use_codes(&codebook));
  for (const Sequence& sequence : sequences) {
    job.report("choosing rates", n_done++, n_total);
    const auto loss = model.run(
        sequence.tokens, [&](const KvRows& rows) { return meter.add(rows); }, job.cancel);
    CQKV_RETURN_IF_ERROR(loss.status());
  }
  return {};
}

// Begins with the costs of an exact cache, then takes those of the cache that they led to, then the
// larger ones of that and of the next.
Status choose_rates_of(const Job& job, GradientModel& model, const Sequences& measured,
                       std::size_t budget, std::vector<RatedSide>& sides, Codebook& codebook) {
  const double bits = job.options.bits[budget];
  const std::size_t n_of_budget = kCostPasses * measured.size();
  std::size_t n_done = budget * n_of_budget;
  CQKV_RETURN_IF_ERROR(fill_codebook(sides, bits, codebook));
  ThreadParallelFor parallel(job.options.n_threads);
  for (std::size_t pass = 0; pass < kCostPasses; pass++) {
    CostMeter meter(sides, parallel);
    CQKV_RETURN_IF_ERROR(measure_costs(job, model, measured, codebook, meter, n_done,
                                       job.options.bits.size() * n_of_budget));
    if (pass == 0) {
      meter.set_losses(sides);
    } else {
      meter.raise_losses(sides);
    }
    CQKV_RETURN_IF_ERROR(fill_codebook(sides, bits, codebook));
  }
  return {};
}

// Options of all heads, by side.
using HeadCosts = std::vector<std::vector<std::vector<RateOption>>>;

HeadCosts costs_of(const std::vector<RatedSide>& sides) {
  HeadCosts costs;
  for (const RatedSide& side : sides) {
    costs.push_back(side.tensor.heads);
  }
  return costs;
}

void restore_costs(const HeadCosts& costs, std::vector<RatedSide>& sides) {
  for (std::size_t i = 0; i < sides.size(); i++) {
    sides[i].tensor.heads = costs[i];
  }
}

// Every rate of every tensor first: a budget is for all heads together.
Status learn_budgets(const Job& job, SampleCollector& samples, const Sequences& measured,
                     Calibration& calibration) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<RatedSide> sides;
  CQKV_RETURN_IF_ERROR(learn_rated_sides(job, samples, sides));
  calibration.stats.seconds_learning = seconds_since(start);
  const auto learned = std::chrono::steady_clock::now();
  auto model = load_gradients(job);
  if (!model.ok()) {
    return model.status();
  }
  const HeadCosts first_costs = costs_of(sides);
  for (std::size_t i = 0; i < job.options.bits.size(); i++) {
    restore_costs(first_costs, sides);  // a budget does not depend on the others
    CQKV_RETURN_IF_ERROR(
        choose_rates_of(job, *model, measured, i, sides, calibration.codebooks[i].codebook));
    CQKV_RETURN_IF_ERROR(round_to_bytes(calibration.codebooks[i].codebook));
  }
  calibration.stats.seconds_choosing = seconds_since(learned);
  return {};
}

Status learn(const Job& job, SampleCollector& samples, Calibration& calibration) {
  const auto start = std::chrono::steady_clock::now();
  const std::size_t n_total = samples.tensors().size();
  for (std::size_t n_done = 0; !samples.tensors().empty(); n_done++) {
    job.report("learning codebooks", n_done, n_total);
    // Taken out, so that memory falls as codebooks are learned.
    const auto tensor = samples.tensors().extract(samples.tensors().begin());
    CQKV_RETURN_IF_ERROR(learn_tensor(job, tensor.key(), tensor.mapped(), calibration.codebooks));
  }
  calibration.stats.seconds_learning = seconds_since(start);
  return {};
}

float mean_held_out_error(const CalibratedCodebook& result, KvKind kind) {
  double sum = 0;
  std::size_t n = 0;
  for (const auto& tensor : result.tensors) {
    sum += tensor.kind == kind ? tensor.held_out_error : 0;
    n += tensor.kind == kind ? 1 : 0;
  }
  return n == 0 ? 0 : static_cast<float>(sum / static_cast<double>(n));
}

// What is known only at the end.
void finish(const CalibrationStats& stats, CalibratedCodebook& result) {
  Codebook& codebook = result.codebook;
  codebook.origin.n_tokens = static_cast<std::uint32_t>(stats.n_tokens);
  if (!result.tensors.empty()) {  // with budgets costs are measured, not shares of the variance
    codebook.origin.held_out = {static_cast<std::uint32_t>(stats.n_held_out),
                                mean_held_out_error(result, KvKind::kKey),
                                mean_held_out_error(result, KvKind::kValue)};
  }
  // A layer without rows (recurrent, or sharing another's cache) has no codebook.
  codebook.layers.resize(
      std::max(codebook.layers.size(), codebook.origin.model_fingerprint.size()));
}

// Where the codebooks come from, but for the name, which tells the configuration.
Result<CodebookOrigin> describe(const CalibrationOptions& options) {
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
  CodebookOrigin origin;
  origin.architecture = *architecture;
  origin.model_name = name.ok() ? name->value_or("") : "";
  if (origin.model_name.empty()) {
    origin.model_name = std::filesystem::path(options.model_path).stem().string();
  }
  origin.license = options.license;
  origin.weighting = weighting_name(options.weighting);
  for (const auto& path : options.text.files) {
    origin.datasets.push_back(std::filesystem::path(path).filename().string());
  }
  origin.ctx_size = static_cast<std::uint32_t>(options.text.n_ctx);
  origin.seed = options.seed;
  origin.model_fingerprint = *std::move(fingerprint);
  return origin;
}

// One empty codebook a configuration.
Status begin_codebooks(const CalibrationOptions& options, Calibration& calibration) {
  const auto origin = describe(options);
  if (!origin.ok()) {
    return origin.status();
  }
  const auto begin = [&](const std::string& name, const KvConfig& config) {
    CalibratedCodebook& result = calibration.codebooks.emplace_back();
    result.name = name;
    result.config = config;
    result.codebook.origin = *origin;
    result.codebook.origin.name = origin->model_name + " cq-" + name + " " + origin->weighting;
    result.codebook.window = options.window;
    result.codebook.sinks = options.sinks;
  };
  for (const double bits : options.bits) {
    begin(budget_name(bits), {});
  }
  for (const KvConfig& config : options.configs) {
    if (options.bits.empty()) {
      begin(config.name(), config);
    }
  }
  return {};
}

void count_tokens(const Sequences& sequences, CalibrationStats& stats) {
  stats.n_sequences = sequences.size();
  for (std::size_t i = 0; i < sequences.size(); i++) {
    stats.n_tokens += sequences[i].tokens.size();
    stats.n_held_out += held_out_range(i, sequences[i].tokens.size()).size();
  }
}

// What the texts themselves say.
Sequences without_repeats(const Sequences& sequences) {
  Sequences result;
  std::copy_if(sequences.begin(), sequences.end(), std::back_inserter(result),
               [](const Sequence& sequence) { return !sequence.repeats; });
  return result;
}

// To learn from, and to measure costs on.
struct Texts {
  Sequences learned;
  Sequences measured;
};

// Sequences on which costs are measured, so many for those learned from.
std::size_t n_measured(const CalibrationOptions& options) {
  const std::size_t n_ctx = std::max<std::size_t>(options.text.n_ctx, 1);
  const std::size_t n_learned = (options.text.n_tokens + n_ctx - 1) / n_ctx;
  // At least two: one that repeats and one that does not.
  return options.bits.empty()
             ? 0
             : std::max<std::size_t>(2, (n_learned + kMeasuredShare - 1) / kMeasuredShare);
}

Result<Texts> read_texts(const Job& job, CalibrationStats& stats) {
  job.report("reading texts", 0, 1);
  auto tokenizer = Tokenizer::load(job.options.model_path);
  if (!tokenizer.ok()) {
    return tokenizer.status();
  }
  TextOptions text = job.options.text;
  if (text.chat && tokenizer->chat({"?", "!"}).empty()) {
    job.warn(
        "the model has no chat template that libllama can write: conversations are read as plain "
        "text");
  }
  text.n_further = n_measured(job.options);
  auto sequences = read_sequences(*tokenizer, text);
  if (!sequences.ok()) {
    return sequences.status();
  }
  const auto end = sequences->end() - static_cast<std::ptrdiff_t>(text.n_further);
  Texts texts{{sequences->begin(), end}, {end, sequences->end()}};
  count_tokens(texts.learned, stats);
  stats.n_measured = text.n_further * text.n_ctx;
  const CodecSpec finest = job.options.bits.empty() ? finest_spec(job.options.configs) : kRates[0];
  CQKV_RETURN_IF_ERROR(check_enough(stats, finest));
  job.warn(text_warning(measure_texts(without_repeats(texts.learned)), finest.n_centroids()));
  job.warn(vectors_warning(stats.n_tokens - stats.n_held_out, finest));
  return texts;
}

SampleCollector collector_of(const CalibrationOptions& options) {
  if (options.bits.empty()) {
    return {coded_specs(options.configs, KvKind::kKey),
            coded_specs(options.configs, KvKind::kValue)};
  }
  const std::vector<CodecSpec> rates(std::begin(kRates), std::end(kRates));
  SampleCollector samples(rates, rates);
  samples.collect_for_rates();
  if (options.bases) {
    samples.collect_for_bases();
  }
  return samples;
}

Status run_calibration(Job& job, Calibration& calibration) {
  CQKV_RETURN_IF_ERROR(check_options(job.options));
  // Before the long steps, so that a bad model file fails at once.
  CQKV_RETURN_IF_ERROR(begin_codebooks(job.options, calibration));
  CalibrationStats& stats = calibration.stats;
  const auto texts = read_texts(job, stats);
  if (!texts.ok()) {
    return texts.status();
  }
  SampleCollector samples = collector_of(job.options);
  samples.expect(stats.n_tokens - stats.n_held_out, stats.n_held_out);
  CQKV_RETURN_IF_ERROR(run_model(job, texts->learned, samples, stats));
  CQKV_RETURN_IF_ERROR(job.options.bits.empty()
                           ? learn(job, samples, calibration)
                           : learn_budgets(job, samples, texts->measured, calibration));
  for (CalibratedCodebook& result : calibration.codebooks) {
    finish(stats, result);
  }
  return {};
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

std::string budget_name(double bits) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.2fb", bits);
  return text.data();
}

std::string KvConfig::name() const {
  return keys == values ? keys.name() : keys.name() + "-" + values.name();
}

Result<Calibration> calibrate(const CalibrationOptions& options, const CalibrationEvents& events,
                              const std::atomic<bool>* cancel) {
  try {
    Calibration calibration;
    Job job{options, events, cancel};
    CQKV_RETURN_IF_ERROR(run_calibration(job, calibration));
    return calibration;
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::kResourceExhausted,
                  "calibration: not enough memory for the rows of " +
                      std::to_string(options.text.n_tokens) + " tokens; ask for fewer");
  }
}

}  // namespace cqkv
