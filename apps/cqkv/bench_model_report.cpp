// See bench_model_report.h.
#include "bench_model_report.h"

#include <algorithm>
#include <cstdio>

#include "cqkv/isa.h"

#include "bench_origin.h"
#include "command.h"

namespace cqkv::app {
namespace {

// The row on f16 at the same depth, or nullptr.
const ModelRow* base_of(const ModelRow& row, const std::vector<ModelRow>& rows) {
  const auto base = std::find_if(rows.begin(), rows.end(), [&](const ModelRow& other) {
    return !other.kind.coded() && other.kind.type == "f16" && other.depth == row.depth;
  });
  return base == rows.end() ? nullptr : &*base;
}

// Median, best, ratio.
std::string columns(const Timings& timings, const Timings* base, int n_tokens) {
  if (timings.seconds.empty()) {
    return format("  %9s %9s %7s", "-", "-", "-");
  }
  const std::string ratio = base == nullptr ? "-" : format("%.2f", median_speedup(timings, *base));
  return format("  %9.2f %9.2f %7s", n_tokens / timings.median(), n_tokens / timings.minimum(),
                ratio.c_str());
}

// One row is either the prompt's or the generation's.
nlohmann::ordered_json to_json(const ModelRow& row, const char* test, const Timings& timings,
                               const Timings* base, int n_tokens) {
  nlohmann::ordered_json out;
  out["impl"] = row.kind.coded() ? "cqkv" : "ggml";
  out["type"] = row.kind.type;
  if (row.kind.coded()) {
    out["codebook"] = row.kind.codebook;
  }
  out["test"] = test;
  out["depth"] = row.depth;
  out["n_tokens"] = n_tokens;
  out["threads"] = row.n_threads;
  out["tokens_per_second"] = n_tokens / timings.median();
  out["tokens_per_second_best"] = n_tokens / timings.minimum();
  if (base != nullptr) {
    out["ratio_f16"] = median_speedup(timings, *base);
  }
  out["samples"] = nlohmann::ordered_json::array();
  for (const double seconds : timings.seconds) {
    out["samples"].push_back(n_tokens / seconds);
  }
  return out;
}

}  // namespace

double median_speedup(const Timings& timings, const Timings& base) {
  Timings ratios;
  for (std::size_t i = 0; i < std::min(timings.seconds.size(), base.seconds.size()); i++) {
    ratios.seconds.push_back(base.seconds[i] / timings.seconds[i]);
  }
  return ratios.median();
}

void print_model_header(const BenchWork& work, int n_repeats) {
  std::printf("%s, tokens per second: a prompt of %d, generation of %d, %d repeat%s, %s\n\n",
              work.model.c_str(), work.n_prompt, work.n_gen, n_repeats, n_repeats == 1 ? "" : "s",
              active_isa().c_str());
  std::printf("%8s %7s  %-16s  %9s %9s %7s  %9s %9s %7s\n", "depth", "threads", "cache", "prompt",
              "best", "x f16", "generate", "best", "x f16");
  std::fflush(stdout);
}

void print_model_rows(const std::vector<ModelRow>& rows, const BenchWork& work) {
  for (const ModelRow& row : rows) {
    const ModelRow* base = base_of(row, rows);
    std::printf(
        "%8d %7d  %-16s%s%s\n", row.depth, row.n_threads, row.kind.type.c_str(),
        columns(row.prompt, base == nullptr ? nullptr : &base->prompt, work.n_prompt).c_str(),
        columns(row.gen, base == nullptr ? nullptr : &base->gen, work.n_gen).c_str());
  }
  std::fflush(stdout);
}

nlohmann::ordered_json model_json(const std::vector<ModelRow>& rows, const BenchWork& work) {
  nlohmann::ordered_json out = bench_origin();
  out["model"] = work.model;
  out["rows"] = nlohmann::ordered_json::array();
  for (const ModelRow& row : rows) {
    const ModelRow* base = base_of(row, rows);
    if (work.n_prompt > 0) {
      out["rows"].push_back(to_json(row, "prompt", row.prompt,
                                    base == nullptr ? nullptr : &base->prompt, work.n_prompt));
    }
    if (work.n_gen > 0) {
      out["rows"].push_back(
          to_json(row, "generation", row.gen, base == nullptr ? nullptr : &base->gen, work.n_gen));
    }
  }
  return out;
}

}  // namespace cqkv::app
