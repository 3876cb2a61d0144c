// `cqkv calibrate`: learns codebooks for a model from texts. The recipe is src/calibration;
// here are flags, the files' names, progress, warnings, and leaving nothing behind on Ctrl-C.
#include "calibration/calibrate.h"

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string_view>
#include <thread>

#include "cqkv/codebook_file.h"

#include "codebook_file/kv_shape.h"
#include "codebook_search.h"
#include "command.h"
#include "flag_values.h"
#include "llama/log.h"
#include "places.h"
#include "progress_bar.h"

namespace cqkv::app {
namespace {

constexpr std::string_view kPlaceholder = "{config}";
constexpr const char* kOwnTexts = "WikiText-2, Python's library, GSM8K";

struct Flags {
  CalibrationOptions options;
  std::string output;  // with kPlaceholder for the configuration, if there are several
  bool default_output = false;
  std::string recipe;  // "rates" or "paper"; empty: by the other flags
  std::vector<std::string> configs;
  std::string gradients;  // "far" or "all"; empty: as the kind of codebook wants
  std::string config_k;
  std::string config_v;
  std::string weights = "fisher";
  bool verbose = false;
  bool quiet = false;
};

std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free, "set from a signal handler");

void on_interrupt(int /*signal*/) {
  interrupted.store(true);
}

// The first Ctrl-C asks for an orderly end, a second one ends the process at once.
void catch_interrupts() {
  struct sigaction action = {};
  action.sa_handler = on_interrupt;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

// The file of a configuration or budget.
std::string output_of(const Flags& flags, const std::string& name) {
  std::string path = flags.output;
  for (std::size_t at = path.find(kPlaceholder); at != std::string::npos;
       at = path.find(kPlaceholder, at + name.size())) {
    path.replace(at, kPlaceholder.size(), name);
  }
  return path;
}

// `own` is the side's own flag, which goes before --config.
Status parse_side(const std::string& own, const std::string& config, CodecSpec& out) {
  const auto spec = CodecSpec::parse(own.empty() ? config : own);
  if (!spec.ok()) {
    return spec.status();
  }
  out = *spec;
  return {};
}

// Of the two kinds of codebook the one that --recipe or other flags ask for; if none does, the
// better one, wherever there are gradients.
Status choose_recipe(Flags& flags) {
  const bool has_bits = !flags.options.bits.empty();
  const bool has_configs =
      !flags.configs.empty() || !flags.config_k.empty() || !flags.config_v.empty();
  if (!flags.recipe.empty() && flags.recipe != "rates" && flags.recipe != "paper") {
    return invalid_argument("--recipe: got '" + flags.recipe + "', want rates or paper");
  }
  if (flags.recipe == "paper" ? has_bits : flags.recipe == "rates" && has_configs) {
    return invalid_argument("--recipe: got '" + flags.recipe + "' with " +
                            (has_bits ? "--bits" : "--config") +
                            ", want rates with --bits or paper with --config");
  }
  if (has_bits || !flags.configs.empty()) {
    return {};
  }
  if (flags.recipe != "paper" && flags.weights == "fisher" && !has_configs) {
    flags.options.bits = {1.0};
  } else {
    flags.configs = {"8c8b"};
  }
  return {};
}

Status parse_configs(Flags& flags) {
  auto& configs = flags.options.configs;
  configs.clear();
  for (const std::string& text : flags.configs) {
    KvConfig config;
    CQKV_RETURN_IF_ERROR(parse_side(flags.config_k, text, config.keys));
    CQKV_RETURN_IF_ERROR(parse_side(flags.config_v, text, config.values));
    if (config.keys.exact() && config.values.exact()) {
      return invalid_argument("keys and values are both 'exact': there is nothing to learn");
    }
    if (std::find(configs.begin(), configs.end(), config) != configs.end()) {
      return invalid_argument("configuration " + config.name() +
                              " is asked for twice; name each once in --config");
    }
    configs.push_back(config);
  }
  return {};
}

// Codebooks to write, by name.
std::vector<std::string> output_names(const Flags& flags) {
  std::vector<std::string> names;
  for (const double bits : flags.options.bits) {
    names.push_back(budget_name(bits));
  }
  for (const KvConfig& config : flags.options.configs) {
    if (flags.options.bits.empty()) {
      names.push_back(config.name());
    }
  }
  return names;
}

// With budgets gradients are far ones and texts repeat, unless asked otherwise.
Status parse_gradients(Flags& flags) {
  const bool budgets = !flags.options.bits.empty();
  if (!flags.gradients.empty() && flags.gradients != "far" && flags.gradients != "all") {
    return invalid_argument("--gradients: got '" + flags.gradients + "', want far or all");
  }
  flags.options.far_gradients = flags.gradients.empty() ? budgets : flags.gradients == "far";
  flags.options.text.repeat = budgets;
  return {};
}

// Without -f: prose, code and conversation that come with the project.
Status take_own_texts(Flags& flags) {
  auto texts = calibration_texts();
  if (!texts.ok()) {
    return texts.status();
  }
  flags.options.text.files = *std::move(texts);
  flags.options.text.json_field = "question,answer";
  flags.options.text.chat = true;
  if (!flags.quiet) {
    std::fprintf(stderr,
                 "cqkv calibrate: no -f: learning from the project's own prose, code and "
                 "conversation (%s)\n",
                 kOwnTexts);
  }
  return {};
}

// What cannot be read is wrong use, not a failure.
Status parse_flags(Flags& flags) {
  CQKV_RETURN_IF_ERROR(choose_recipe(flags));
  CQKV_RETURN_IF_ERROR(parse_configs(flags));
  CQKV_RETURN_IF_ERROR(parse_gradients(flags));
  if (flags.options.text.files.empty()) {
    CQKV_RETURN_IF_ERROR(take_own_texts(flags));
  }
  if (flags.output.empty()) {
    flags.output = default_output(flags.options.model_path);
    flags.default_output = true;
  }
  const std::size_t n_outputs = output_names(flags).size();
  if (n_outputs > 1 && flags.output.find(kPlaceholder) == std::string::npos) {
    return invalid_argument("got " + std::to_string(n_outputs) +
                            " configurations and one name, -o " + flags.output +
                            "; put {config} into it, as in -o 'model-{config}.gguf'");
  }
  const auto weighting = parse_weighting(flags.weights);
  if (!weighting.ok()) {
    return weighting.status();
  }
  flags.options.weighting = *weighting;
  return {};
}

Result<Calibration> learn(const Flags& flags) {
  ProgressBar bar("calibrate", flags.quiet);
  CalibrationEvents events;
  events.progress = [&bar](const CalibrationProgress& progress) {
    const auto total = static_cast<double>(std::max<std::size_t>(progress.n_total, 1));
    bar.update(static_cast<double>(progress.n_done) / total, std::string(progress.stage));
  };
  events.warning = [&bar](const std::string& message) {
    bar.print("cqkv calibrate: warning: " + message);
  };
  return calibrate(flags.options, events, &interrupted);
}

double mean_relative_error(const CalibratedCodebook& result, KvKind kind) {
  double sum = 0;
  std::size_t n = 0;
  for (const auto& tensor : result.tensors) {
    if (tensor.kind == kind) {
      sum += tensor.learning.relative_error;
      n++;
    }
  }
  return n == 0 ? 0 : sum / static_cast<double>(n);
}

void print_codebook(const Flags& flags, const CalibratedCodebook& result) {
  const Codebook& codebook = result.codebook;
  std::printf("%s: %s, identity %s\n", output_of(flags, result.name).c_str(),
              codebook.origin.name.c_str(), hex64(codebook.identity()).c_str());
  std::printf("  %.3f bits a channel, %.2f MiB of centroids\n", codebook.bits_per_channel(),
              static_cast<double>(codebook.centroid_bytes()) / (1024.0 * 1024.0));
  if (result.tensors.empty()) {
    return;
  }
  std::printf("  variance lost: keys %.1f %%, values %.1f %% (weighted, mean over layers)\n",
              100 * mean_relative_error(result, KvKind::kKey),
              100 * mean_relative_error(result, KvKind::kValue));
  const HeldOutLoss& loss = codebook.origin.held_out;
  if (loss.n_tokens == 0) {
    std::printf("  on held-out text: not measured, too few tokens\n");
    return;
  }
  std::printf("  on held-out text: keys %.1f %%, values %.1f %% (%u tokens)\n",
              100 * static_cast<double>(loss.keys), 100 * static_cast<double>(loss.values),
              loss.n_tokens);
}

void print_summary(const Flags& flags, const Calibration& result) {
  const CalibrationStats& stats = result.stats;
  for (const CalibratedCodebook& codebook : result.codebooks) {
    print_codebook(flags, codebook);
  }
  std::printf("%zu tokens in %zu sequences; model %s, learning %s", stats.n_tokens,
              stats.n_sequences, clock_text(stats.seconds_model).c_str(),
              clock_text(stats.seconds_learning).c_str());
  if (stats.n_measured > 0) {
    std::printf("; rates chosen on %zu tokens more, %s", stats.n_measured,
                clock_text(stats.seconds_choosing).c_str());
  }
  std::printf("\n");
}

// A name that was not asked for replaces nothing.
Status check_outputs(const Flags& flags) {
  for (const std::string& name : output_names(flags)) {
    const std::string path = output_of(flags, name);
    if (flags.default_output && std::filesystem::exists(path)) {
      return invalid_argument(path +
                              " exists; to replace it or to keep both, name the file to "
                              "write with -o");
    }
    const Status status = check_output(path);
    if (!status.ok()) {
      return Status(status.code(),
                    status.message() + (flags.default_output ? "; name another file with -o" : ""));
    }
  }
  return {};
}

Outcome execute(Flags& flags) {
  const Status parsed = parse_flags(flags);
  if (!parsed.ok()) {
    return Usage{parsed.message()};
  }
  CQKV_RETURN_IF_ERROR(check_is_model(flags.options.model_path));
  CQKV_RETURN_IF_ERROR(check_outputs(flags));
  for (const std::string& text : flags.options.text.files) {
    CQKV_RETURN_IF_ERROR(check_text(text));
  }
  catch_llama_log(flags.verbose);
  catch_interrupts();
  auto result = learn(flags);
  if (!result.ok() && result.status().code() == StatusCode::kCancelled) {
    Outcome outcome(Status(StatusCode::kCancelled, "interrupted; nothing was written"));
    outcome.exit_code = kExitInterrupted;
    return outcome;
  }
  if (!result.ok()) {
    return result.status();
  }
  for (CalibratedCodebook& learned : result->codebooks) {
    learned.codebook.origin.tool_version = "cqkv " CQKV_VERSION;
    CQKV_RETURN_IF_ERROR(write_codebook(learned.codebook, output_of(flags, learned.name)));
  }
  print_summary(flags, *result);
  return {};
}

void add_text_flags(CLI::App* parser, TextOptions& text) {
  add_files(parser, "-f,--file", text.files,
            "Calibration texts: .jsonl one object a line, others plain; taken in turns "
            "[default: prose, code and conversation that come with cqkv]");
  parser->add_option("--json-field", text.json_field, "Fields of a .jsonl object, by commas")
      ->capture_default_str()
      ->check(CLI::Validator(
          [](const std::string& names) { return names.empty() ? "got no name" : std::string(); },
          ""))
      ->type_name("NAMES");
  parser->add_flag("--chat", text.chat,
                   "The fields are turns of a conversation, the user's first: written as the "
                   "model's chat template has them");
  add_number(parser, "--n-tokens", text.n_tokens, kTextRange,
             "Tokens to learn from; with --bits a quarter more is read to choose rates");
  add_number(parser, "-c,--ctx-size", text.n_ctx, kSequenceSizeRange, "Tokens of one sequence");
}

void add_learning_flags(CLI::App* parser, Flags& flags) {
  CLI::Option* config =
      parser
          ->add_option(
              "--config", flags.configs,
              "The paper's method: <channels>c<bits>b, 1, 2, 4, ... or 64 neighbouring channels "
              "coded together in 1 to 12 bits; several by commas, with {config} in -o: the model "
              "runs once for all")
          ->delimiter(',')
          ->type_name("CONFIG");
  CLI::Option* bits =
      parser
          ->add_option(
              "--bits,--kv", flags.options.bits,
              "Bits a channel, 0.125 to 4, in which every KV head has the rate that it needs "
              "[default: 1, unless --config, --config-k, --config-v or --weights uniform is "
              "given]; several by commas")
          ->delimiter(',')
          ->type_name("BITS");
  parser
      ->add_option("--gradients", flags.gradients,
                   "far: only those through queries that read codes count (with --bits the "
                   "default); all: every query")
      ->type_name("WHICH");
  CLI::Option* config_k =
      parser->add_option("--config-k", flags.config_k, "Of keys alone, or 'exact'")
          ->type_name("CONFIG");
  CLI::Option* config_v =
      parser->add_option("--config-v", flags.config_v, "Of values alone, or 'exact'")
          ->type_name("CONFIG");
  bits->excludes(config)->excludes(config_k)->excludes(config_v);
  parser
      ->add_option("--recipe", flags.recipe,
                   "rates: every KV head has its own rate (--bits); paper: Coupled Quantization as "
                   "published, all alike (--config, if not given 8c8b) [default: rates, unless "
                   "--config, --config-k, --config-v or --weights uniform is given]")
      ->type_name("RECIPE");
  parser
      ->add_flag("!--no-bases", flags.options.bases,
                 "With --bits: groups of neighbouring channels, not of those that belong together")
      ->needs(bits);
  parser
      ->add_option("--weights", flags.weights,
                   "fisher: tokens count by the gradients of the loss (llama, qwen2, qwen3, "
                   "gemma3); uniform: all alike (any architecture)")
      ->capture_default_str()
      ->type_name("WEIGHTS");
  CalibrationOptions& options = flags.options;
  add_number(parser, "--max-iterations", options.max_iterations, kIterationRange, "Of k-means");
  add_number(parser, "-s,--seed", options.seed, kSeedRange, "Of k-means");
  add_number(parser, "-t,--threads", options.n_threads, kThreadRange, "Threads");
  add_number(parser, "--window", options.window, kWindowRange,
             "Most recent tokens that the device keeps exact by default");
  add_number(parser, "--sinks", options.sinks, kWindowRange,
             "First tokens that it keeps exact by default");
  parser->add_option("--license", flags.options.license, "Licence to note in the codebook")
      ->type_name("NAME");
}

}  // namespace

Command add_calibrate(CLI::App& app) {
  CLI::App* parser = app.add_subcommand("calibrate", "Learn a codebook for a model from texts");
  const auto flags = std::make_shared<Flags>();
  flags->options.n_threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  add_file(parser, "-m,--model", flags->options.model_path, "The model (GGUF)")->required();
  add_file(parser, "-o,--output", flags->output,
           "The codebook to write; {config} in it becomes the configuration's name [default: "
           "NAME.cq-{config}.gguf beside the model NAME.gguf, where run and serve look for it]");
  add_text_flags(parser, flags->options.text);
  add_learning_flags(parser, *flags);
  parser->add_flag("-v,--verbose", flags->verbose, "Show libllama's log");
  parser->add_flag("-q,--quiet", flags->quiet, "No progress");
  parser->footer(
      "Examples:\n"
      "  cqkv calibrate -m model.gguf\n"
      "  cqkv calibrate -m model.gguf -o model-1b.gguf\n"
      "  cqkv calibrate -m model.gguf -f text.txt code.txt -o model-half.gguf --bits 0.5\n"
      "  cqkv calibrate -m model.gguf -f text.txt -o model-8c8b.gguf --config 8c8b\n"
      "  cqkv calibrate -m model.gguf -f wiki.txt chat.jsonl --json-field question,answer "
      "--chat -o model-mixed.gguf --config-k 4c8b --config-v 8c8b\n"
      "  cqkv calibrate -m model.gguf -f text.txt code.txt -o 'model-{config}.gguf' "
      "--config 8c8b,4c8b\n"
      "Ctrl-C stops without writing (exit code 130).");
  return {parser, [flags](const std::vector<std::string>&) { return execute(*flags); }};
}

}  // namespace cqkv::app
