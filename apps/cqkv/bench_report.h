// Rows of the operator benchmark (bench_attention.cpp) as a table and as JSON.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "bench_case.h"
#include "bench_timing.h"

namespace cqkv::app {

/// How far a result is from others on the same codes: the largest |a - b| / |b| of a query and
/// head, in the Euclidean norm.
struct BenchDifferences {
  std::optional<double> from_floats;  ///< Ours, on codes: from our own in floats.
  double from_ggml_f32 = 0;           ///< From ggml's on f32 rows of what the codes stand for.
};

/// One implementation on one problem.
struct BenchRow {
  std::string impl;
  std::string type;
  std::string path;     ///< Of ours: "bytes", "floats"; else empty.
  int n_key_heads = 0;  ///< Of ours: KV heads whose keys are summed to predict values from.
  BenchShape shape;
  int n_threads = 1;
  std::size_t cache_bytes = 0;
  Timings timings;
  double memory_bytes_per_second = 0;  ///< Measured, with as many threads.
  std::optional<BenchDifferences> differences;

  double ns_per_token_head(double seconds) const { return seconds * 1e9 / shape.n_scores(); }

  double us_per_query(double seconds) const {
    return seconds * 1e6 / (static_cast<double>(shape.n_seq) * shape.n_queries * shape.n_layers);
  }

  double bytes_per_second() const { return static_cast<double>(cache_bytes) / timings.minimum(); }

  double bandwidth_share() const { return bytes_per_second() / memory_bytes_per_second; }
};

/// Bytes per second that memory was read at, by number of threads.
using MemorySpeeds = std::map<int, double>;

void print_bench_header(const BenchShape& shape, const MemorySpeeds& memory, bool with_check);

/// Rows of one shape and number of threads.
void print_bench_rows(const std::vector<BenchRow>& rows);

nlohmann::ordered_json bench_json(const std::vector<BenchRow>& rows, const MemorySpeeds& memory);

}  // namespace cqkv::app
