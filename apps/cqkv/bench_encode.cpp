// `cqkv bench encode`: how fast rows are encoded, by codec and number of rows at a time. Codecs
// take turns as in bench_timing.h; rows and codebooks are random.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <iterator>
#include <memory>
#include <utility>

#include <nlohmann/json.hpp>

#include "cqkv/codebook.h"
#include "cqkv/isa.h"

#include "bench_case.h"
#include "bench_origin.h"
#include "bench_timing.h"
#include "command.h"
#include "flag_values.h"
#include "places.h"

namespace cqkv::app {
namespace {

struct Flags {
  std::vector<std::string> codecs = {"8c8b", "4c8b", "2c8b"};
  int head_dim = 128;
  int n_kv_heads = 2;
  std::vector<int> n_rows = {1, 512};
  std::string isa;
  double seconds = 1.0;
  std::string json;
};

// ---- One codec -------------------------------------------------------------

// The keys and values of some tokens, `n_rows` tokens at a time.
class Encoding {
 public:
  static Result<Encoding> create(CodecSpec spec, const Flags& flags, int n_rows);

  // Every token's keys and values once.
  void run();

  // Rows that one run encodes, keys and values counted each.
  double rows_per_run() const { return 2.0 * static_cast<double>(n_tokens_); }

  double multiply_adds_per_row() const {
    return static_cast<double>(keys_.n_channels()) * keys_.spec().n_centroids();
  }

 private:
  // As many tokens as are encoded at a time, but enough for one run not to be over at once.
  static constexpr std::size_t kMinTokens = 64;

  Encoding(TensorCodebook keys, TensorCodebook values, int n_rows);

  TensorCodebook keys_;
  TensorCodebook values_;
  std::size_t n_rows_;
  std::size_t n_tokens_;
  std::vector<float> rows_;  // [n_tokens, n_channels], of keys and of values
  std::vector<std::uint16_t> codes_;
};

Result<Encoding> Encoding::create(CodecSpec spec, const Flags& flags, int n_rows) {
  auto keys = random_codebook(spec, flags.n_kv_heads, flags.head_dim, 1);
  auto values = random_codebook(spec, flags.n_kv_heads, flags.head_dim, 2);
  if (!keys.ok() || !values.ok()) {
    return keys.ok() ? values.status() : keys.status();
  }
  return Encoding(*std::move(keys), *std::move(values), n_rows);
}

Encoding::Encoding(TensorCodebook keys, TensorCodebook values, int n_rows)
    : keys_(std::move(keys)),
      values_(std::move(values)),
      n_rows_(static_cast<std::size_t>(n_rows)),
      n_tokens_((kMinTokens + n_rows_ - 1) / n_rows_ * n_rows_),
      rows_(random_floats(n_tokens_ * static_cast<std::size_t>(keys_.n_channels()), 3)),
      codes_(n_rows_ * static_cast<std::size_t>(keys_.n_codes())) {
}

void Encoding::run() {
  const auto row_floats = static_cast<std::size_t>(keys_.n_channels());
  for (std::size_t token = 0; token < n_tokens_; token += n_rows_) {
    const float* rows = rows_.data() + token * row_floats;
    keys_.encode(rows, n_rows_, row_floats, codes_.data());
    values_.encode(rows, n_rows_, row_floats, codes_.data());
  }
}

// ---- Rows of the table -----------------------------------------------------

struct EncodeRow {
  std::string codec;
  int n_rows = 1;
  Timings timings;
  double rows_per_run = 0;
  double multiply_adds_per_row = 0;

  double ns_per_row(double seconds) const { return seconds * 1e9 / rows_per_run; }

  // Keys and values: two rows, each of all KV heads.
  double us_per_token_head(double seconds, int n_kv_heads) const {
    return 2 * ns_per_row(seconds) / 1e3 / n_kv_heads;
  }

  double multiply_adds_per_second() const {
    return multiply_adds_per_row * rows_per_run / timings.minimum();
  }
};

void print_header(const Flags& flags) {
  std::printf("encode, 1 thread: heads of %d, %d KV heads, %s\n\n", flags.head_dim,
              flags.n_kv_heads, active_isa().c_str());
  std::printf("%6s  %-6s %12s %12s  %14s %9s  %12s\n", "rows", "codec", "ns/row", "median",
              "us/token/head", "median", "10^9 mul-add");
}

void print_rows(const std::vector<EncodeRow>& rows, const Flags& flags) {
  for (const EncodeRow& row : rows) {
    const double fastest = row.timings.minimum();
    const double median = row.timings.median();
    std::printf("%6d  %-6s %12.1f %12.1f  %14.3f %9.3f  %12.2f\n", row.n_rows, row.codec.c_str(),
                row.ns_per_row(fastest), row.ns_per_row(median),
                row.us_per_token_head(fastest, flags.n_kv_heads),
                row.us_per_token_head(median, flags.n_kv_heads),
                row.multiply_adds_per_second() / 1e9);
  }
  std::fflush(stdout);
}

nlohmann::ordered_json to_json(const EncodeRow& row, const Flags& flags) {
  const double fastest = row.timings.minimum();
  const double median = row.timings.median();
  nlohmann::ordered_json out;
  out["codec"] = row.codec;
  out["head_dim"] = flags.head_dim;
  out["n_kv_heads"] = flags.n_kv_heads;
  out["n_rows"] = row.n_rows;
  out["ns_per_row"] = row.ns_per_row(fastest);
  out["ns_per_row_median"] = row.ns_per_row(median);
  out["us_per_token_head"] = row.us_per_token_head(fastest, flags.n_kv_heads);
  out["us_per_token_head_median"] = row.us_per_token_head(median, flags.n_kv_heads);
  out["multiply_adds_per_second"] = row.multiply_adds_per_second();
  out["repetitions"] = row.timings.seconds.size();
  return out;
}

nlohmann::ordered_json encode_json(const std::vector<EncodeRow>& rows, const Flags& flags) {
  nlohmann::ordered_json out = bench_origin();
  out["rows"] = nlohmann::ordered_json::array();
  for (const EncodeRow& row : rows) {
    out["rows"].push_back(to_json(row, flags));
  }
  return out;
}

// ---- The command -----------------------------------------------------------

// All codecs in turns.
Result<std::vector<EncodeRow>> time_codecs(const Flags& flags, int n_rows) {
  std::vector<Encoding> encodings;
  for (const std::string& codec : flags.codecs) {
    auto encoding = Encoding::create(*CodecSpec::parse(codec), flags, n_rows);
    if (!encoding.ok()) {
      return encoding.status();
    }
    encodings.push_back(*std::move(encoding));
  }
  std::vector<std::function<Status()>> runs;
  runs.reserve(encodings.size());
  for (Encoding& encoding : encodings) {
    runs.emplace_back([&encoding] {
      encoding.run();
      return Status();
    });
  }
  auto timings = time_in_turns(runs, flags.seconds);
  if (!timings.ok()) {
    return timings.status();
  }
  std::vector<EncodeRow> rows;
  for (std::size_t i = 0; i < encodings.size(); i++) {
    rows.push_back({flags.codecs[i], n_rows, std::move((*timings)[i]), encodings[i].rows_per_run(),
                    encodings[i].multiply_adds_per_row()});
  }
  return rows;
}

Status check_flags(const Flags& flags) {
  CQKV_RETURN_IF_ERROR(parse_codecs(flags.codecs, flags.head_dim).status());
  return flags.isa.empty() ? Status() : force_isa(flags.isa);
}

Outcome execute(const Flags& flags) {
  const Status usable = check_flags(flags);
  if (!usable.ok()) {
    return Usage{usable.message()};
  }
  CQKV_RETURN_IF_ERROR(check_output(flags.json));
  const bool table = flags.json != "-";
  if (table) {
    print_header(flags);
  }
  std::vector<EncodeRow> rows;
  for (const int n_rows : flags.n_rows) {
    auto timed = time_codecs(flags, n_rows);
    if (!timed.ok()) {
      return timed.status();
    }
    if (table) {
      print_rows(*timed, flags);
    }
    std::move(timed->begin(), timed->end(), std::back_inserter(rows));
  }
  return write_json(flags.json, encode_json(rows, flags));
}

void add_shape_flags(CLI::App* parser, Flags& flags) {
  parser->add_option("--codec", flags.codecs, "Codes to time, as 8c8b")
      ->capture_default_str()
      ->delimiter(',')
      ->type_name("C");
  add_number(parser, "--head-dim", flags.head_dim, kHeadDimRange, "Channels of a head");
  add_number(parser, "--kv-heads", flags.n_kv_heads, kHeadRange, "KV heads");
  add_numbers(parser, "--rows", flags.n_rows, kRowRange, "Rows encoded at a time");
}

}  // namespace

Command add_bench_encode(CLI::App& bench) {
  CLI::App* parser = bench.add_subcommand("encode", "Encoding of rows");
  const auto flags = std::make_shared<Flags>();
  add_shape_flags(parser, *flags);
  parser->add_option("--isa", flags->isa, "Instruction set of the kernels; default: as elsewhere")
      ->type_name("NAME");
  add_seconds(parser, flags->seconds, "Time for one number of rows, all codecs together");
  add_json_file(parser, flags->json);
  parser->footer(
      "Examples:\n"
      "  cqkv bench encode --codec 8c8b,8c10b --rows 1,64,512\n"
      "  cqkv bench encode --isa scalar --json encode.json");
  return {parser, [flags](const std::vector<std::string>&) { return execute(*flags); }};
}

}  // namespace cqkv::app
