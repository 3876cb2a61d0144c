// See llama_bench.h.
#include "llama_bench.h"

#include <nlohmann/json.hpp>

#include "child_process.h"
#include "places.h"

namespace cqkv::app {
namespace {

constexpr double kNanosecond = 1e-9;

// Of the device in use; llama-bench shows "auto" where none was asked for.
Status check_device(const nlohmann::json& row, const CacheKind& kind) {
  const std::string got = row.at("devices").get<std::string>();
  const std::string want = kind.coded() ? "CQ0" : "none";
  return got == want
             ? Status()
             : Status(StatusCode::kMismatch, "llama-bench on a cache of " + kind.type +
                                                 ": got device '" + got + "', want '" + want + "'");
}

// May throw what nlohmann::json throws.
Result<BenchSeconds> parse_rows(const nlohmann::json& rows, const BenchWork& work,
                                const CacheKind& kind) {
  BenchSeconds seconds;
  for (const nlohmann::json& row : rows) {
    CQKV_RETURN_IF_ERROR(check_device(row, kind));
    const double taken = row.at("avg_ns").get<double>() * kNanosecond;
    (row.at("n_gen").get<int>() > 0 ? seconds.gen : seconds.prompt) = taken;
    seconds.n_threads = row.at("n_threads").get<int>();
  }
  const bool whole =
      (work.n_prompt == 0 || seconds.prompt > 0) && (work.n_gen == 0 || seconds.gen > 0);
  return whole ? Result<BenchSeconds>(seconds)
               : corrupt("llama-bench: got " + std::to_string(rows.size()) +
                         " results, want the prompt's and the generation's");
}

}  // namespace

std::string llama_bench_program() {
  return host_program("llama-bench");
}

std::vector<std::string> llama_bench_arguments(const BenchWork& work, const CacheKind& kind,
                                               int depth) {
  std::vector<std::string> arguments = {llama_bench_program(),
                                        "-m",
                                        work.model,
                                        "-p",
                                        std::to_string(work.n_prompt),
                                        "-n",
                                        std::to_string(work.n_gen),
                                        "-d",
                                        std::to_string(depth),
                                        "-fa",
                                        "on",
                                        "-r",
                                        "1",
                                        "-o",
                                        "json"};
  if (work.n_threads > 0) {
    arguments.insert(arguments.end(), {"-t", std::to_string(work.n_threads)});
  }
  if (kind.coded()) {
    const auto flags = device_flags();
    arguments.insert(arguments.end(), flags.begin(), flags.end());
  } else {
    arguments.insert(arguments.end(), {"-dev", "none", "-ctk", kind.type, "-ctv", kind.type});
  }
  return arguments;
}

Result<BenchSeconds> parse_llama_bench(const std::string& json, const BenchWork& work,
                                       const CacheKind& kind) {
  try {
    return parse_rows(nlohmann::json::parse(json), work, kind);
  } catch (const nlohmann::json::exception& error) {
    return corrupt(std::string("llama-bench: cannot read its JSON: ") + error.what() +
                   last_lines(json, 3));
  }
}

Result<BenchSeconds> run_llama_bench(const BenchWork& work, const CacheKind& kind, int depth) {
  const auto out = run_child(llama_bench_arguments(work, kind, depth), kind.environment);
  return out.ok() ? parse_llama_bench(*out, work, kind) : out.status();
}

}  // namespace cqkv::app
