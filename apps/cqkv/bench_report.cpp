// See bench_report.h.
#include "bench_report.h"

#include <algorithm>
#include <cstdio>

#include "cqkv/isa.h"

#include "bench_origin.h"
#include "command.h"

namespace cqkv::app {
namespace {

// How many times faster than ggml on f16, a layer against a layer; "-" where that did not run.
std::string speedup(const BenchRow& row, const std::vector<BenchRow>& rows) {
  const auto f16 = std::find_if(rows.begin(), rows.end(),
                                [](const BenchRow& other) { return other.type == "f16"; });
  const auto time = [](const BenchRow& one) {
    return one.ns_per_token_head(one.timings.minimum());
  };
  return f16 == rows.end() ? "-" : format("%.2f", time(*f16) / time(row));
}

// "8c8b+2" with the keys of two heads.
std::string type_of(const BenchRow& row) {
  return row.n_key_heads == 0 ? row.type : row.type + "+" + std::to_string(row.n_key_heads);
}

nlohmann::ordered_json to_json(const BenchRow& row) {
  const double fastest = row.timings.minimum();
  const double median = row.timings.median();
  nlohmann::ordered_json out;
  out["impl"] = row.impl;
  out["type"] = row.type;
  if (!row.path.empty()) {
    out["path"] = row.path;
    out["key_heads"] = row.n_key_heads;
  }
  out["head_dim"] = row.shape.head_dim;
  out["gqa"] = row.shape.gqa;
  out["n_kv_heads"] = row.shape.n_kv_heads;
  out["n_layers"] = row.shape.n_layers;
  out["n_tokens"] = row.shape.n_tokens;
  out["n_seq"] = row.shape.n_seq;
  out["unified"] = row.shape.unified;
  out["first_position"] = row.shape.first_position;
  out["rope_base"] = row.shape.rope_base;
  out["n_queries"] = row.shape.n_queries;
  out["threads"] = row.n_threads;
  out["ns_per_token_head"] = row.ns_per_token_head(fastest);
  out["ns_per_token_head_median"] = row.ns_per_token_head(median);
  out["us_per_query"] = row.us_per_query(fastest);
  out["us_per_query_median"] = row.us_per_query(median);
  out["repetitions"] = row.timings.seconds.size();
  out["cache_bytes"] = row.cache_bytes;
  out["bytes_per_second"] = row.bytes_per_second();
  out["bandwidth_share"] = row.bandwidth_share();
  if (row.differences) {
    if (row.differences->from_floats) {
      out["difference_floats"] = *row.differences->from_floats;
    }
    out["difference_ggml_f32"] = row.differences->from_ggml_f32;
  }
  return out;
}

}  // namespace

void print_bench_header(const BenchShape& shape, const MemorySpeeds& memory, bool with_check) {
  std::printf(
      "attention, ns per token and query head: heads of %d, %d query heads of each of %d "
      "KV heads, rotary base %g, %s\n",
      shape.head_dim, shape.gqa, shape.n_kv_heads, shape.rope_base, active_isa().c_str());
  for (const auto& [n_threads, speed] : memory) {
    std::printf("memory, %d thread%s: %.1f GB/s\n", n_threads, n_threads == 1 ? "" : "s",
                speed / 1e9);
  }
  std::printf("\n%8s %5s %7s %7s  %-4s %-6s %-6s %9s %9s %7s %11s %8s %8s%s\n", "tokens", "seqs",
              "queries", "threads", "impl", "type", "path", "fastest", "median", "x f16",
              "us/query", "GB/s", "memory %", with_check ? "   floats  ggml f32" : "");
}

void print_bench_rows(const std::vector<BenchRow>& rows) {
  for (const BenchRow& row : rows) {
    const double fastest = row.timings.minimum();
    std::printf("%8d %4d%s %7d %7d  %-4s %-6s %-6s %9.3f %9.3f %7s %11.1f %8.2f %8.1f",
                row.shape.n_tokens, row.shape.n_seq, row.shape.unified ? "u" : " ",
                row.shape.n_queries, row.n_threads, row.impl.c_str(), type_of(row).c_str(),
                row.path.empty() ? "-" : row.path.c_str(), row.ns_per_token_head(fastest),
                row.ns_per_token_head(row.timings.median()), speedup(row, rows).c_str(),
                row.us_per_query(fastest), row.bytes_per_second() / 1e9,
                100 * row.bandwidth_share());
    if (row.differences) {
      const auto& from_floats = row.differences->from_floats;
      std::printf("  %7s  %8.5f", from_floats ? format("%.5f", *from_floats).c_str() : "-",
                  row.differences->from_ggml_f32);
    }
    std::printf("\n");
  }
  std::fflush(stdout);
}

nlohmann::ordered_json bench_json(const std::vector<BenchRow>& rows, const MemorySpeeds& memory) {
  nlohmann::ordered_json out = bench_origin();
  out["memory"] = nlohmann::ordered_json::array();
  for (const auto& [n_threads, speed] : memory) {
    out["memory"].push_back({{"threads", n_threads}, {"bytes_per_second", speed}});
  }
  out["rows"] = nlohmann::ordered_json::array();
  for (const BenchRow& row : rows) {
    out["rows"].push_back(to_json(row));
  }
  return out;
}

}  // namespace cqkv::app
