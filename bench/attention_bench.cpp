// Times attention over coded and plain caches: nanoseconds per token, query and query
// head, for decode (1 query) and prefill (512), at every level of this processor.
//
//     attention_bench [--isa NAME] [--threads N] [--quick] [--floats]
//
// Three figures: the median of repeated runs of one call, the fastest of them, and the
// processor time of all threads, which a busy machine disturbs least. Encoding and the
// rest of the model are not here.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>
#include <string_view>
#include <vector>

#include "cqkv/isa.h"

#include "attention/attention.h"
#include "attention/attention_case.h"

namespace cqkv {
namespace {

struct Options {
  std::string isa;  // empty: all
  int n_threads = 1;
  bool quick = false;
  bool floats = false;
};

// Heads as in a model that is in use.
struct Model {
  const char* name;
  int n_kv_heads;
  int heads_per_kv;
  int head_dim;
};

constexpr Model kModels[] = {
    {"kv3x3 d64", 3, 3, 64},
    {"kv2x6 d128", 2, 6, 128},
};

// Per token, query and query head.
struct Timing {
  double median_ns = 0;
  double fastest_ns = 0;
  double cpu_ns = 0;
};

// Pairs of (query, token) that are visible: what a causal prefill has to do.
double n_visible(const AttentionShape& shape) {
  const double queries = shape.n_queries;
  const auto cells = static_cast<double>(shape.n_cells);
  return shape.causal ? queries * (cells - queries) + queries * (queries + 1) / 2 : queries * cells;
}

Timing time_call(const AttentionShape& shape, int n_threads) {
  using Clock = std::chrono::steady_clock;
  AttentionCase test(shape, 1);
  ThreadParallelFor parallel(n_threads);
  AttentionWorkspace workspace;
  const AttentionCall call = test.call();
  std::vector<double> seconds;
  double total = 0;
  std::clock_t cpu_start = 0;
  while (seconds.size() < 5 || (total < 0.2 && seconds.size() < 1000)) {
    if (seconds.size() == 1) {
      cpu_start = std::clock();  // the first call reserves memory
    }
    const auto start = Clock::now();
    const Status status = attend(call, parallel, workspace);
    if (!status.ok()) {
      std::fprintf(stderr, "%s\n", status.message().c_str());
      std::exit(1);
    }
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    total += seconds.back();
  }
  const double cpu = static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC;
  seconds.erase(seconds.begin());
  std::sort(seconds.begin(), seconds.end());
  const double to_ns = 1e9 / (n_visible(shape) * shape.n_kv_heads * shape.heads_per_kv);
  return {seconds[seconds.size() / 2] * to_ns, seconds.front() * to_ns,
          cpu / static_cast<double>(seconds.size()) * to_ns};
}

void print_row(const std::string& isa, const Model& model, const AttentionShape& shape,
               const Options& options) {
  const Timing timing = time_call(shape, options.n_threads);
  std::printf("%-11s %-11s %-7s %-8s %7d %8zu %8.2f %8.2f %8.2f\n", isa.c_str(), model.name,
              shape.k.name().c_str(), shape.scrambled ? "any" : "in order", shape.n_queries,
              shape.n_cells, timing.median_ns, timing.fastest_ns, timing.cpu_ns);
  std::fflush(stdout);
}

void run_level(const std::string& isa, const Options& options) {
  const std::vector<std::size_t> frontiers =
      options.quick ? std::vector<std::size_t>{4096} : std::vector<std::size_t>{1024, 4096, 16384};
  const char* codecs[] = {"8c8b", "4c8b", "8c10b", "2c8b", "exact"};
  for (const Model& model : kModels) {
    for (const char* codec : codecs) {
      AttentionShape shape;
      shape.k = shape.v = CodecSpec::parse(codec).value();
      shape.n_kv_heads = model.n_kv_heads;
      shape.heads_per_kv = model.heads_per_kv;
      shape.head_dim_k = shape.head_dim_v = model.head_dim;
      shape.rope = plain_rope(model.head_dim, RopeMode::kNeox);
      shape.causal = true;
      shape.byte_tables = !options.floats;
      for (const std::size_t n_cells : frontiers) {
        shape.n_cells = n_cells;
        print_row(isa, model, shape, options);
      }
      shape.n_cells = 4096;
      shape.scrambled = true;
      print_row(isa, model, shape, options);
      shape.scrambled = false;
      shape.n_queries = 512;
      print_row(isa, model, shape, options);
    }
  }
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i++) {
    const std::string_view argument = argv[i];
    if (argument == "--quick") {
      options.quick = true;
    } else if (argument == "--floats") {
      options.floats = true;
    } else if (argument == "--isa" && i + 1 < argc) {
      options.isa = argv[++i];
    } else if (argument == "--threads" && i + 1 < argc) {
      options.n_threads = std::max(1, std::atoi(argv[++i]));  // NOLINT(cert-err34-c): 0 is caught
    } else {
      std::fprintf(stderr,
                   "usage: attention_bench [--isa NAME] [--threads N] [--quick] [--floats]\n");
      std::exit(2);
    }
  }
  return options;
}

}  // namespace
}  // namespace cqkv

int main(int argc, char** argv) {
  const cqkv::Options options = cqkv::parse(argc, argv);
  std::printf("ns per token, query and query head; %d thread(s)\n", options.n_threads);
  std::printf("%-11s %-11s %-7s %-8s %7s %8s %8s %8s %8s\n", "level", "heads", "codec", "position",
              "queries", "cells", "median", "fastest", "cpu");
  for (const std::string& isa : cqkv::supported_isas()) {
    if (!options.isa.empty() && options.isa != isa) {
      continue;
    }
    if (!cqkv::force_isa(isa).ok()) {
      return 1;
    }
    cqkv::run_level(isa, options);
  }
  return 0;
}
