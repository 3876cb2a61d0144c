// `cqkv bench model`: a whole model on coded caches and on llama.cpp's own, end to end through
// llama-bench. One run of it is in llama_bench.h, tables and JSON in bench_model_report.h; here
// are the flags and what is run when: caches take turns within each repeat, so that what
// disturbs a machine for a while disturbs all of them.
#include <filesystem>
#include <iterator>
#include <memory>
#include <optional>

#include "bench_model_report.h"
#include "command.h"
#include "flag_values.h"
#include "llama_bench.h"
#include "places.h"
#include "progress_bar.h"

namespace cqkv::app {
namespace {

struct Flags {
  BenchWork work;
  std::vector<std::string> types = {"f16", "q8_0", "q4_0"};
  std::vector<std::string> codebooks;
  WindowOverride window;
  std::vector<int> depths = {0, 4096, 16384, 32768};
  int n_repeats = 3;
  bool quiet = false;
  std::string json;
};

std::vector<CacheKind> kinds_of(const Flags& flags) {
  std::vector<CacheKind> kinds;
  for (const std::string& type : flags.types) {
    // llama-bench must not find the device even where the user's own environment names it.
    kinds.push_back({type, "", {{"GGML_BACKEND_PATH", ""}}});
  }
  kinds.reserve(kinds.size() + flags.codebooks.size());
  for (const std::string& codebook : flags.codebooks) {
    const std::string name = std::filesystem::path(codebook).stem().string();
    kinds.push_back({name, codebook, device_environment({{codebook}, flags.window})});
  }
  return kinds;
}

// All kinds at one depth.
Result<std::vector<ModelRow>> run_depth(const Flags& flags, const std::vector<CacheKind>& kinds,
                                        int depth) {
  std::vector<ModelRow> rows;
  rows.reserve(kinds.size());
  for (const CacheKind& kind : kinds) {
    rows.push_back({kind, depth, 0, {}, {}});
  }
  ProgressBar progress("depth " + std::to_string(depth), flags.quiet);
  const std::size_t n_runs = rows.size() * static_cast<std::size_t>(flags.n_repeats);
  for (std::size_t run = 0; run < n_runs; run++) {
    ModelRow& row = rows[run % rows.size()];
    progress.update(static_cast<double>(run) / static_cast<double>(n_runs),
                    format("%s, repeat %zu of %d", row.kind.type.c_str(), run / rows.size() + 1,
                           flags.n_repeats));
    const auto seconds = run_llama_bench(flags.work, row.kind, depth);
    if (!seconds.ok()) {
      return seconds.status();
    }
    row.n_threads = seconds->n_threads;
    if (flags.work.n_prompt > 0) {
      row.prompt.seconds.push_back(seconds->prompt);
    }
    if (flags.work.n_gen > 0) {
      row.gen.seconds.push_back(seconds->gen);
    }
  }
  progress.update(1.0, "");
  return rows;
}

// What can be known before the first run, which may take long.
Status check_files(const Flags& flags) {
  CQKV_RETURN_IF_ERROR(check_output(flags.json));
  CQKV_RETURN_IF_ERROR(check_programs(llama_bench_program()));
  return check_codebooks(flags.work.model, flags.codebooks);
}

Outcome execute(const Flags& flags) {
  if (flags.work.n_prompt == 0 && flags.work.n_gen == 0) {
    return Usage{"--prompt, --gen: got 0 and 0, want at least one of them above 0"};
  }
  CQKV_RETURN_IF_ERROR(check_files(flags));
  const std::vector<CacheKind> kinds = kinds_of(flags);
  const bool table = flags.json != "-";
  if (table) {
    print_model_header(flags.work, flags.n_repeats);
  }
  std::vector<ModelRow> rows;
  for (const int depth : flags.depths) {
    auto timed = run_depth(flags, kinds, depth);
    if (!timed.ok()) {
      return timed.status();
    }
    if (table) {
      print_model_rows(*timed, flags.work);
    }
    std::move(timed->begin(), timed->end(), std::back_inserter(rows));
  }
  return write_json(flags.json, model_json(rows, flags.work));
}

void add_kind_flags(CLI::App* parser, Flags& flags) {
  add_file(parser, "-m,--model", flags.work.model, "The model (GGUF)")->required();
  add_files(parser, "--kv-codebook", flags.codebooks, "Codebooks of the coded caches to time")
      ->required();
  parser->add_option("--type", flags.types, "llama.cpp's own cache types to time")
      ->capture_default_str()
      ->delimiter(',')
      ->check(CLI::IsMember({"f16", "q8_0", "q4_0"}))
      ->type_name("T");
  add_window_flags(parser, flags.window);
}

void add_work_flags(CLI::App* parser, Flags& flags) {
  add_numbers(parser, "--depths", flags.depths, kTokenRange,
              "Tokens in the cache before what is timed");
  add_number(parser, "--prompt", flags.work.n_prompt, kTokenRange, "Tokens of the prompt; 0: none");
  add_number(parser, "--gen", flags.work.n_gen, kTokenRange, "Tokens to generate; 0: none");
  add_number(parser, "--repeat", flags.n_repeats, kRepeatRange, "Runs of each cache at each depth");
  add_number(parser, "-t,--threads", flags.work.n_threads, kThreadRange,
             "Threads; default: llama-bench's")
      ->default_str("");
}

}  // namespace

Command add_bench_model(CLI::App& bench) {
  CLI::App* parser = bench.add_subcommand(
      "model", "A model on coded caches beside llama.cpp's own, through llama-bench");
  const auto flags = std::make_shared<Flags>();
  add_kind_flags(parser, *flags);
  add_work_flags(parser, *flags);
  parser->add_flag("-q,--quiet", flags->quiet, "No progress");
  add_json_file(parser, flags->json);
  parser->footer(
      "Examples:\n"
      "  cqkv bench model -m model.gguf --kv-codebook model-cq.gguf --json model.json\n"
      "  cqkv bench model -m model.gguf --kv-codebook 1bit.gguf 2bit.gguf --depths 8192 --type "
      "f16");
  return {parser, [flags](const std::vector<std::string>&) { return execute(*flags); }};
}

}  // namespace cqkv::app
