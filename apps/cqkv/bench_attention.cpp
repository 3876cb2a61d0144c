// `cqkv bench attention`: the operator benchmark, attention over codes beside ggml's own over
// its cache types, in one process and in turns. Problems are made in bench_case.h, computed
// in bench_attend.h, timed in bench_timing.h, compared in bench_check.h, shown in
// bench_report.h; here are the flags and what is run when.
#include <algorithm>
#include <filesystem>
#include <functional>
#include <iterator>
#include <memory>
#include <thread>

#include "cqkv/codebook_file.h"

#include "bench_attend.h"
#include "bench_check.h"
#include "bench_report.h"
#include "bench_timing.h"
#include "command.h"
#include "flag_values.h"
#include "places.h"

namespace cqkv::app {
namespace {

struct Flags {
  std::vector<std::string> codecs;     // empty: as codebooks say
  std::vector<std::string> codebooks;  // files
  std::vector<std::string> types = {"f16", "q8_0", "q4_0"};
  BenchShape shape;
  std::vector<int> n_key_heads = {0};
  std::vector<int> n_tokens = {4096};
  std::vector<int> n_seq = {1};
  std::vector<int> n_threads;
  double seconds = 1.0;
  bool check = false;
  std::string json;
};

// ---- One problem -----------------------------------------------------------

// The caches of one shape with everything that runs on them.
struct Bench {
  explicit Bench(const BenchShape& bench_shape) : shape(bench_shape), inputs(shape) {}

  BenchShape shape;
  BenchInputs inputs;
  std::vector<std::unique_ptr<BenchCodes>> codes;
  std::vector<std::unique_ptr<CodedAttention>> coded;
  std::vector<std::unique_ptr<BenchShape>> model_shapes;
  std::vector<std::unique_ptr<ModelAttention>> models;  // one of each shape
  std::vector<std::unique_ptr<GgmlAttention>> ggml;     // on what the first codes stand for
  std::vector<BenchReference> references;               // of the codes; empty without --check
};

Status add_coded(const Flags& flags, const std::string& codec, int n_key_heads, Bench& bench) {
  auto codes = BenchCodes::random(bench.shape, *CodecSpec::parse(codec), n_key_heads);
  if (!codes.ok()) {
    return codes.status();
  }
  bench.codes.push_back(std::make_unique<BenchCodes>(*std::move(codes)));
  bench.coded.push_back(std::make_unique<CodedAttention>(bench.shape, bench.inputs,
                                                         *bench.codes.back(), /*bytes=*/true));
  if (flags.check) {
    auto reference = BenchReference::compute(bench.shape, bench.inputs, *bench.codes.back());
    if (!reference.ok()) {
      return reference.status();
    }
    bench.references.push_back(*std::move(reference));
  }
  return {};
}

Status add_ggml(const std::string& type, Bench& bench) {
  auto ggml = GgmlAttention::create(bench.shape, bench.inputs, type);
  if (!ggml.ok()) {
    return ggml.status();
  }
  bench.ggml.push_back(*std::move(ggml));
  if (!bench.codes.empty()) {
    bench.ggml.back()->fill(*bench.codes.front());
  }
  return {};
}

Status add_codec(const Flags& flags, const std::string& codec, Bench& bench) {
  for (const int n_key_heads : flags.n_key_heads) {
    CQKV_RETURN_IF_ERROR(add_coded(flags, codec, n_key_heads, bench));
  }
  return {};
}

Status add_all(const Flags& flags, const std::vector<Codebook>& codebooks, Bench& bench) {
  for (const std::string& codec : flags.codecs) {
    CQKV_RETURN_IF_ERROR(add_codec(flags, codec, bench));
  }
  for (const Codebook& codebook : codebooks) {
    BenchShape& shape = *bench.model_shapes.emplace_back(std::make_unique<BenchShape>(bench.shape));
    shape.n_layers = static_cast<int>(codebook.layers.size());
    shape.rope_mode = rope_mode_of(codebook);
    bench.models.push_back(std::make_unique<ModelAttention>(shape, bench.inputs, codebook));
  }
  for (const std::string& type : flags.types) {
    CQKV_RETURN_IF_ERROR(add_ggml(type, bench));
  }
  return {};
}

std::vector<BenchAttention*> all_of(const Bench& bench) {
  std::vector<BenchAttention*> all;
  for (const auto& coded : bench.coded) {
    all.push_back(coded.get());
  }
  for (const auto& model : bench.models) {
    all.push_back(model.get());
  }
  for (const auto& ggml : bench.ggml) {
    all.push_back(ggml.get());
  }
  return all;
}

// Of the outputs of the last timed runs.
void set_differences(const Bench& bench, std::vector<BenchRow>& rows) {
  const auto all = all_of(bench);
  for (std::size_t i = 0; i < all.size(); i++) {
    const bool coded = i < bench.coded.size();
    rows[i].differences = bench.references[coded ? i : 0].compare(all[i]->out(), coded);
  }
}

Result<std::vector<BenchRow>> time_all(const Flags& flags, Bench& bench, int n_threads) {
  std::vector<std::function<Status()>> runs;
  for (BenchAttention* attention : all_of(bench)) {
    attention->set_n_threads(n_threads);
    runs.emplace_back([attention] { return attention->run(); });
  }
  auto timings = time_in_turns(runs, flags.seconds);
  if (!timings.ok()) {
    return timings.status();
  }
  std::vector<BenchRow> rows;
  for (const BenchAttention* attention : all_of(bench)) {
    BenchRow row;
    row.impl = attention->impl();
    row.type = attention->type();
    row.shape = bench.shape;
    row.n_threads = n_threads;
    row.cache_bytes = attention->cache_bytes();
    row.timings = std::move((*timings)[rows.size()]);
    rows.push_back(std::move(row));
  }
  for (std::size_t i = 0; i < bench.coded.size(); i++) {
    rows[i].path = bench.coded[i]->path();
    rows[i].n_key_heads = bench.coded[i]->n_key_heads();
  }
  for (std::size_t i = 0; i < bench.models.size(); i++) {
    BenchRow& row = rows[bench.coded.size() + i];
    row.path = bench.models[i]->path();
    row.shape = *bench.model_shapes[i];
  }
  if (flags.check) {
    set_differences(bench, rows);
  }
  return rows;
}

// ---- The command -----------------------------------------------------------

Result<MemorySpeeds> measure_memory(const std::vector<int>& n_threads) {
  const auto meter = BandwidthMeter::create();
  if (!meter.ok()) {
    return meter.status();
  }
  MemorySpeeds speeds;
  for (const int n : n_threads) {
    speeds[n] = meter->bytes_per_second(n);
  }
  return speeds;
}

std::vector<BenchShape> shapes_of(const Flags& flags) {
  std::vector<BenchShape> shapes;
  for (const int n_tokens : flags.n_tokens) {
    for (const int n_seq : flags.n_seq) {
      BenchShape shape = flags.shape;
      shape.n_tokens = n_tokens;
      shape.n_seq = n_seq;
      shapes.push_back(shape);
    }
  }
  return shapes;
}

// Rows of one shape go to the table as they come and to `rows`.
Status run_shape(const Flags& flags, const std::vector<Codebook>& codebooks,
                 const BenchShape& shape, const MemorySpeeds& memory, std::vector<BenchRow>& rows) {
  Bench bench(shape);
  CQKV_RETURN_IF_ERROR(add_all(flags, codebooks, bench));
  for (const int n_threads : flags.n_threads) {
    auto timed = time_all(flags, bench, n_threads);
    if (!timed.ok()) {
      return timed.status();
    }
    for (BenchRow& row : *timed) {
      row.memory_bytes_per_second = memory.at(n_threads);
    }
    if (flags.json != "-") {
      print_bench_rows(*timed);
    }
    std::move(timed->begin(), timed->end(), std::back_inserter(rows));
  }
  return {};
}

// Codecs, types and shapes that cannot be.
Status check_flags(const Flags& flags, const std::vector<BenchShape>& shapes) {
  CQKV_RETURN_IF_ERROR(parse_codecs(flags.codecs, flags.shape.head_dim).status());
  for (const std::string& type : flags.types) {
    CQKV_RETURN_IF_ERROR(GgmlAttention::check_type(type, flags.shape.head_dim));
  }
  for (const BenchShape& shape : shapes) {
    CQKV_RETURN_IF_ERROR(shape.check());
  }
  for (const int n_key_heads : flags.n_key_heads) {
    if (n_key_heads > flags.shape.n_kv_heads) {
      return invalid_argument("--key-heads: got " + std::to_string(n_key_heads) +
                              ", want at most the " + std::to_string(flags.shape.n_kv_heads) +
                              " KV heads that there are");
    }
  }
  return {};
}

// The codebooks of the files, whose heads become those of the shape.
Result<std::vector<Codebook>> read_codebooks(Flags& flags) {
  std::vector<Codebook> codebooks;
  for (const std::string& path : flags.codebooks) {
    auto codebook = read_codebook(path);
    if (!codebook.ok()) {
      return codebook.status();
    }
    CQKV_RETURN_IF_ERROR(check_benchable(*codebook, path));
    const TensorCodebook& keys = *codebook->layers.front().get(KvKind::kKey);
    if (!codebooks.empty() &&
        (keys.head_dim() != flags.shape.head_dim || keys.n_kv_heads() != flags.shape.n_kv_heads)) {
      return invalid_argument(path + ": has " + std::to_string(keys.n_kv_heads()) +
                              " KV heads of " + std::to_string(keys.head_dim()) +
                              ", the first codebook has " + std::to_string(flags.shape.n_kv_heads) +
                              " of " + std::to_string(flags.shape.head_dim));
    }
    flags.shape.head_dim = keys.head_dim();
    flags.shape.n_kv_heads = keys.n_kv_heads();
    codebook->origin.name = std::filesystem::path(path).stem().string();  // as rows call it
    codebooks.push_back(*std::move(codebook));
  }
  return codebooks;
}

// The first row that is further off than it may be.
Status check_rows(const std::vector<BenchRow>& rows) {
  for (const BenchRow& row : rows) {
    CQKV_RETURN_IF_ERROR(check_differences(row));
  }
  return {};
}

Outcome execute(Flags& flags) {
  const auto codebooks = read_codebooks(flags);
  if (!codebooks.ok()) {
    return codebooks.status();
  }
  if (flags.codecs.empty() && codebooks->empty()) {
    flags.codecs = {"8c8b", "4c8b", "2c8b"};
  }
  const auto shapes = shapes_of(flags);
  const Status usable = check_flags(flags, shapes);
  if (!usable.ok()) {
    return Usage{usable.message()};
  }
  CQKV_RETURN_IF_ERROR(check_output(flags.json));
  const auto memory = measure_memory(flags.n_threads);
  if (!memory.ok()) {
    return memory.status();
  }
  if (flags.json != "-") {
    print_bench_header(flags.shape, *memory, flags.check);
  }
  std::vector<BenchRow> rows;
  for (const BenchShape& shape : shapes) {
    CQKV_RETURN_IF_ERROR(run_shape(flags, *codebooks, shape, *memory, rows));
  }
  CQKV_RETURN_IF_ERROR(write_json(flags.json, bench_json(rows, *memory)));
  return check_rows(rows);
}

// 1 and all.
std::vector<int> default_threads() {
  const int all = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  return all == 1 ? std::vector<int>{1} : std::vector<int>{1, all};
}

void add_shape_flags(CLI::App* parser, Flags& flags) {
  add_number(parser, "--head-dim", flags.shape.head_dim, kHeadDimRange, "Channels of a head");
  add_number(parser, "--gqa", flags.shape.gqa, kHeadRange, "Query heads of one KV head");
  add_number(parser, "--kv-heads", flags.shape.n_kv_heads, kHeadRange, "KV heads");
  add_number(parser, "--queries", flags.shape.n_queries, kRowRange,
             "Queries of a sequence: its last tokens");
  add_numbers(parser, "--tokens", flags.n_tokens, kBatchRange, "Tokens of a sequence");
  add_numbers(parser, "--seqs", flags.n_seq, kSequenceCountRange, "Sequences");
  add_numbers(parser, "-t,--threads", flags.n_threads, kThreadRange, "Threads; default: 1 and all");
  add_numbers(parser, "--key-heads", flags.n_key_heads, kTokenRange,
              "KV heads whose keys are summed besides, to predict values from");
  add_number(parser, "--first-position", flags.shape.first_position, kTokenRange,
             "Position of a sequence's first token");
  parser->add_option("--rope-base", flags.shape.rope_base, "Base of the keys' rotation")
      ->capture_default_str()
      ->check(real_number(1.0, 1e9))
      ->type_name("B");
  parser->add_flag("--unified", flags.shape.unified,
                   "Sequences take turns in one cache, told apart by masks");
}

}  // namespace

Command add_bench_attention(CLI::App& bench) {
  CLI::App* parser =
      bench.add_subcommand("attention", "Attention over codes beside ggml's over its cache types");
  const auto flags = std::make_shared<Flags>();
  flags->n_threads = default_threads();
  parser
      ->add_option("--codec", flags->codecs,
                   "Codes to time, as 8c8b [default: 8c8b,4c8b,2c8b; with --kv-codebook none]")
      ->delimiter(',')
      ->type_name("C");
  CLI::Option* codebooks =
      add_files(parser, "--kv-codebook", flags->codebooks,
                "Codebooks to time, all layers in turn; --head-dim and --kv-heads are theirs");
  parser->add_option("--type", flags->types, "Cache types of ggml to time")
      ->capture_default_str()
      ->delimiter(',')
      ->check(CLI::IsMember({"f16", "q8_0", "q4_0"}))
      ->type_name("T");
  add_shape_flags(parser, *flags);
  add_seconds(parser, flags->seconds, "Time for one shape and number of threads");
  parser
      ->add_flag("--check", flags->check,
                 "Compare results: ours with ours in floats, all with ggml's on f32")
      ->excludes(codebooks);
  add_json_file(parser, flags->json);
  parser->footer(
      "Examples:\n"
      "  cqkv bench attention --tokens 1024,4096,16384 --json attention.json\n"
      "  cqkv bench attention --codec 8c8b --type f16 --kv-heads 8 --seqs 1,8,32 --unified\n"
      "  cqkv bench attention --codec 8c8b --key-heads 0,1,2 --type f16\n"
      "  cqkv bench attention --kv-codebook paper.gguf model-1b.gguf --gqa 3 --type f16\n"
      "  cqkv bench attention --queries 512 --check");
  return {parser, [flags](const std::vector<std::string>&) { return execute(*flags); }};
}

}  // namespace cqkv::app
