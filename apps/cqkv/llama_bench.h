// One run of llama-bench, the program beside cqkv: how it is called for a cache kind and how its
// JSON is read.
#pragma once

#include <string>
#include <vector>

#include "cqkv/status.h"

#include "device_environment.h"

namespace cqkv::app {

/// A kind of cache: one of llama.cpp's own types on the CPU, or codes on the KV device.
struct CacheKind {
  std::string type;      ///< "f16", "q8_0"; of codes the codebook's file without folder and suffix.
  std::string codebook;  ///< Its path; empty for llama.cpp's own types.
  Environment environment;  ///< Changes with which llama-bench finds the device, or does not.

  bool coded() const { return !codebook.empty(); }
};

/// What all kinds are timed on.
struct BenchWork {
  std::string model;
  int n_prompt = 512;  ///< Tokens of the prompt; 0: not timed.
  int n_gen = 32;      ///< Tokens to generate; 0: not timed.
  int n_threads = 0;   ///< 0: llama-bench's default.
};

/// Seconds of one run; 0 for what was not timed.
struct BenchSeconds {
  double prompt = 0;
  double gen = 0;
  int n_threads = 0;  ///< As llama-bench says.
};

/// llama-bench's own line of arguments.
std::vector<std::string> llama_bench_arguments(const BenchWork& work, const CacheKind& kind,
                                               int depth);

/// Reads llama-bench's JSON. kCorrupt if it lacks what was to be timed, kMismatch if the cache
/// was not on the device that it belongs to.
Result<BenchSeconds> parse_llama_bench(const std::string& json, const BenchWork& work,
                                       const CacheKind& kind);

/// Runs the work once behind `depth` tokens. Failures of the program as of run_child.
Result<BenchSeconds> run_llama_bench(const BenchWork& work, const CacheKind& kind, int depth);

/// The program beside cqkv.
std::string llama_bench_program();

}  // namespace cqkv::app
