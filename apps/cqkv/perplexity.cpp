// `cqkv perplexity`: what a coded cache costs in quality, against the 16-bit cache of
// the same process. The measuring is src/eval; here are flags, table and JSON.
#include "eval/perplexity.h"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <thread>

#include <nlohmann/json.hpp>

#include "command.h"
#include "flag_values.h"
#include "llama/log.h"
#include "places.h"
#include "progress_bar.h"

namespace cqkv::app {
namespace {

namespace fs = std::filesystem;
using eval::CacheKind;
using eval::PerplexityReport;
using eval::VariantReport;

struct Flags {
  eval::PerplexityOptions options;
  std::vector<std::string> codebooks;
  std::string base = "stock";
  std::string score = "half";
  bool no_bos = false;
  bool verbose = false;
  bool quiet = false;
  std::string json;
};

double mebibytes(std::uint64_t bytes) {
  return static_cast<double>(bytes) / (1024.0 * 1024.0);
}

std::string variant_name(const VariantReport& report) {
  if (report.codebook_name.empty()) {
    return report.variant.text;
  }
  std::string name = report.codebook_name;
  if (report.window.enabled()) {
    name += format(", window %d+%d", report.window.window, report.window.sinks);
  }
  const int n_ubatch = report.variant.n_ubatch;
  return name + (n_ubatch > 0 ? format(" @ub:%d", n_ubatch) : std::string());
}

void print_header(const Flags& flags, const PerplexityReport& report) {
  const bool half = flags.options.score == eval::ScoreMode::kHalf;
  std::printf("model   %s (%s)\n", report.model_name.c_str(), report.architecture.c_str());
  std::printf("text    %s: %d chunks of %d tokens%s, %s, %zu predictions\n",
              flags.options.text_path.c_str(), report.n_chunks, flags.options.n_ctx,
              report.bos ? " (BOS first)" : "",
              flags.options.repeat ? "first halves said twice, the second time scored"
              : half               ? "second halves scored"
                                   : "all positions but the first scored",
              report.n_scored);
  const bool stock = flags.base == "stock";
  std::printf("base    %s: perplexity %.4f +/- %.5f, cache %.2f MiB (%d cells)\n\n",
              stock ? "16-bit cache" : flags.base.c_str(), report.ppl_base, report.ppl_base_se,
              mebibytes(report.base_size.f16_bytes), report.n_cells);
}

// Codebooks of one configuration have one name: where rows would look alike, what was given for
// them stands behind, without its folders unless these make the difference.
std::vector<std::string> row_names(const PerplexityReport& report) {
  std::vector<std::string> names;
  std::map<std::string, int> n_rows;
  const auto tell_apart = [&](const auto& suffix) {
    n_rows.clear();
    for (const std::string& name : names) {
      n_rows[name]++;
    }
    for (std::size_t i = 0; i < names.size(); i++) {
      const VariantReport& variant = report.variants[i];
      if (n_rows[names[i]] > 1 && !variant.codebook_name.empty()) {
        names[i] = variant_name(variant) + " [" + suffix(variant.variant.text) + "]";
      }
    }
  };
  for (const VariantReport& variant : report.variants) {
    names.push_back(variant_name(variant));
  }
  tell_apart([](const std::string& given) { return fs::path(given).filename().string(); });
  tell_apart([](const std::string& given) { return given; });
  return names;
}

void print_table(const PerplexityReport& report) {
  if (report.variants.empty()) {
    return;
  }
  const std::vector<std::string> names = row_names(report);
  std::size_t width = 5;
  for (const std::string& name : names) {
    width = std::max(width, name.size());
  }
  const int w = static_cast<int>(width);
  std::printf("%-*s  %6s  %6s  %9s  %20s  %19s  %19s  %9s  %9s  %9s  %14s\n", w, "cache", "bits",
              "all-in", "MiB", "perplexity", "ratio", "KL divergence", "median", "99 %", "99.9 %",
              "top-1 %");
  for (std::size_t i = 0; i < names.size(); i++) {
    const VariantReport& variant = report.variants[i];
    const eval::PairSummary& s = variant.summary;
    std::printf(
        "%-*s  %6.3f  %6.3f  %9.3f  %9.4f +/- %6.4f  %8.4f +/- %6.4f  %8.5f +/- %6.5f"
        "  %9.5f  %9.5f  %9.5f  %6.2f +/- %4.2f\n",
        w, names[i].c_str(), variant.size.bits_codes, variant.size.bits_all_in,
        mebibytes(variant.size.cache_bytes()), s.ppl, s.ppl_se, s.ratio, s.ratio_se, s.kld_mean,
        s.kld_se, s.kld_median, s.kld_p99, s.kld_p999, 100 * s.top1, 100 * s.top1_se);
  }
}

void warn_about_bytes(const PerplexityReport& report) {
  for (const VariantReport& variant : report.variants) {
    if (variant.variant.kind == CacheKind::kCoded && variant.device_cache_bytes &&
        *variant.device_cache_bytes != variant.size.cache_bytes()) {
      std::fprintf(stderr,
                   "cqkv perplexity: warning: %s: the device allocated %llu bytes for its newest "
                   "cache, counted from the codebook it is %llu (models with several caches "
                   "differ)\n",
                   variant.variant.text.c_str(),
                   static_cast<unsigned long long>(*variant.device_cache_bytes),
                   static_cast<unsigned long long>(variant.size.cache_bytes()));
    }
  }
}

nlohmann::ordered_json variant_json(const VariantReport& report) {
  const eval::PairSummary& s = report.summary;
  nlohmann::ordered_json out;
  out["name"] = variant_name(report);
  out["path"] = report.variant.text;
  if (report.variant.kind == CacheKind::kCoded) {
    out["identity"] = hex64(report.codebook_identity);
    out["window"] = report.window.window;
    out["sinks"] = report.window.sinks;
  }
  out["ppl_base"] = s.ppl_base;
  out["ppl_base_se"] = s.ppl_base_se;
  out["ppl"] = s.ppl;
  out["ppl_se"] = s.ppl_se;
  out["ratio"] = s.ratio;
  out["ratio_se"] = s.ratio_se;
  out["ratio_se_chunks"] = s.ratio_se_chunks;
  out["chunk_ratios"] = s.chunk_ratios;
  out["kld_mean"] = s.kld_mean;
  out["kld_se"] = s.kld_se;
  out["kld_median"] = s.kld_median;
  out["kld_p99"] = s.kld_p99;
  out["kld_p999"] = s.kld_p999;
  out["top1"] = s.top1;
  out["top1_se"] = s.top1_se;
  out["bits_codes"] = report.size.bits_codes;
  out["bits_all_in"] = report.size.bits_all_in;
  out["cache_bytes"] = report.size.cache_bytes();
  out["cache_bytes_f16"] = report.size.f16_bytes;
  out["codebook_bytes"] = report.size.codebook_bytes;
  if (report.device_cache_bytes) {
    out["cache_bytes_device"] = *report.device_cache_bytes;
  }
  out["n_scored"] = s.n_scored;
  return out;
}

nlohmann::ordered_json report_json(const Flags& flags, const PerplexityReport& report) {
  nlohmann::ordered_json out;
  out["tool"] = "cqkv " CQKV_VERSION;
  out["model"] = flags.options.model_path;
  out["model_name"] = report.model_name;
  out["architecture"] = report.architecture;
  out["text"] = flags.options.text_path;
  out["base"] = flags.base;
  out["n_ctx"] = flags.options.n_ctx;
  out["n_cells"] = report.n_cells;
  out["n_chunks"] = report.n_chunks;
  out["n_batch"] = flags.options.n_batch;
  out["n_ubatch"] = flags.options.n_ubatch;
  out["n_threads"] = flags.options.n_threads;
  out["score"] = flags.score;
  out["repeat"] = flags.options.repeat;
  out["bos"] = report.bos;
  out["n_scored"] = report.n_scored;
  out["ppl_base"] = report.ppl_base;
  out["ppl_base_se"] = report.ppl_base_se;
  out["codebooks"] = nlohmann::ordered_json::array();
  for (const VariantReport& variant : report.variants) {
    out["codebooks"].push_back(variant_json(variant));
  }
  return out;
}

void tell_memory(std::uint64_t n_bytes) {
  constexpr std::uint64_t kMuch = std::uint64_t{1} << 30U;
  if (n_bytes > kMuch) {
    std::fprintf(stderr,
                 "cqkv perplexity: this takes about %.1f GiB beside the model; less with a smaller "
                 "-c or -ub, or fewer codebooks at a time\n",
                 mebibytes(n_bytes) / 1024.0);
  }
}

Result<PerplexityReport> measure(const Flags& flags) {
  ProgressBar bar("perplexity", flags.quiet);
  return measure_perplexity(flags.options, [&](const eval::Progress& progress) {
    if (progress.n_done == 0 && !flags.quiet) {
      tell_memory(progress.n_bytes);
    }
    const double fraction =
        static_cast<double>(progress.n_done) / static_cast<double>(progress.n_total);
    bar.update(fraction,
               progress.ppl_base == 0 ? "" : format("16-bit perplexity %.4f", progress.ppl_base));
    return true;
  });
}

Outcome execute(Flags& flags) {
  if (flags.options.repeat && flags.score != "half") {
    return Usage{"--repeat scores the second halves; leave out --score " + flags.score};
  }
  flags.options.score = flags.score == "half" ? eval::ScoreMode::kHalf : eval::ScoreMode::kAll;
  flags.options.add_bos = !flags.no_bos;
  flags.options.device_library = device_library();
  const auto base = eval::Variant::parse(flags.base);
  if (!base.ok()) {
    return Usage{base.status().message()};
  }
  flags.options.base = *base;
  std::vector<std::string> paths;
  for (const auto& text : flags.codebooks) {
    const auto variant = eval::Variant::parse(text);
    if (!variant.ok()) {
      return Usage{variant.status().message()};
    }
    flags.options.variants.push_back(*variant);
    if (variant->kind == CacheKind::kCoded) {
      paths.push_back(variant->codebook_path);
    }
  }
  CQKV_RETURN_IF_ERROR(check_output(flags.json));
  CQKV_RETURN_IF_ERROR(check_text(flags.options.text_path));
  CQKV_RETURN_IF_ERROR(check_codebooks(flags.options.model_path, paths));
  catch_llama_log(flags.verbose);
  const auto report = measure(flags);
  if (!report.ok()) {
    return report.status();
  }
  if (flags.json != "-") {
    print_header(flags, *report);
    print_table(*report);
    std::fflush(stdout);
  }
  warn_about_bytes(*report);
  return write_json(flags.json, report_json(flags, *report));
}

}  // namespace

Command add_perplexity(CLI::App& app) {
  CLI::App* parser =
      app.add_subcommand("perplexity", "Measure what coded caches cost against the 16-bit one");
  const auto flags = std::make_shared<Flags>();
  flags->options.n_threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  eval::PerplexityOptions& options = flags->options;
  add_file(parser, "-m,--model", options.model_path, "The model (GGUF)")->required();
  add_files(parser, "--kv-codebook", flags->codebooks,
            "Codebooks to compare; 'none' for 16-bit rows through the KV device");
  add_file(parser, "-f,--file", options.text_path, "The text to score")->required();
  add_number(parser, "-c,--ctx-size", options.n_ctx, kChunkSizeRange, "Tokens of a chunk");
  add_number(parser, "--chunks", options.n_chunks, kChunkCountRange,
             "At most this many chunks; -1: all");
  add_number(parser, "-b,--batch-size", options.n_batch, kBatchRange, "Logical batch size");
  add_number(parser, "--ubatch-size", options.n_ubatch, kBatchRange,
             "Also -ub: physical batch size");
  add_number(parser, "-t,--threads", options.n_threads, kThreadRange, "Threads");
  add_window_flags(parser, options.window);
  parser
      ->add_option("--score", flags->score,
                   "half: the second half of each chunk, as llama-perplexity; all: every position "
                   "but the first")
      ->capture_default_str()
      ->check(CLI::IsMember({"half", "all"}));
  parser->add_flag("--repeat", options.repeat,
                   "Measure copying: each chunk says its first half twice, and the second time is "
                   "scored, with the first -c / 2 tokens back");
  parser->add_flag("--no-bos", flags->no_bos,
                   "Do not begin chunks with BOS, whatever the model wants");
  add_json_file(parser, flags->json);
  parser->add_flag("-v,--verbose", flags->verbose, "Show libllama's log");
  parser->add_flag("-q,--quiet", flags->quiet, "No progress");
  parser->add_option("--base", flags->base)->group("");  // for our own tests
  parser->footer(
      "Examples:\n"
      "  cqkv perplexity -m model.gguf --kv-codebook one.gguf two.gguf -f wiki.test.raw -c 2048 "
      "--chunks 16\n"
      "  cqkv perplexity -m model.gguf --kv-codebook one.gguf none stock-nofa stock-ub:32 -f "
      "wiki.test.raw\n"
      "  cqkv perplexity -m model.gguf --kv-codebook one.gguf one.gguf@window:0@sinks:0 -f "
      "wiki.test.raw\n"
      "  cqkv perplexity -m model.gguf --kv-codebook one.gguf -f wiki.test.raw -c 2048 --repeat\n"
      "The second shows the spread of llama.cpp's own 16-bit variants beside the codebook:\n"
      "stock-nofa without flash attention, stock-ub:<N> with another -ub; stock-q8_0 or\n"
      "stock-q4_0 is llama.cpp's own quantized cache. The third compares\n"
      "with and without the exact window; the fourth copying from 1024 tokens back.");
  return {parser, [flags](const std::vector<std::string>&) { return execute(*flags); }};
}

}  // namespace cqkv::app
