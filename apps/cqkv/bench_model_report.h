// Rows of the model benchmark (bench_model.cpp) as a table and as JSON.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "bench_timing.h"
#include "llama_bench.h"

namespace cqkv::app {

/// One kind of cache at one depth.
struct ModelRow {
  CacheKind kind;
  int depth = 0;
  int n_threads = 0;
  Timings prompt;  ///< One a repeat; empty if not timed.
  Timings gen;
};

/// The median over repeats of how many times faster than `base` in the same repeat: both ran
/// right after each other.
double median_speedup(const Timings& timings, const Timings& base);

void print_model_header(const BenchWork& work, int n_repeats);

/// Rows of one depth.
void print_model_rows(const std::vector<ModelRow>& rows, const BenchWork& work);

nlohmann::ordered_json model_json(const std::vector<ModelRow>& rows, const BenchWork& work);

}  // namespace cqkv::app
