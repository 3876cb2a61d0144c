// measure_perplexity: the order of things (checks before loads, base before variants,
// compare and drop). The arithmetic is in logit_compare.h and pair_stats.h; how much is in
// memory at once is planned in memory_plan.h.
#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <span>
#include <utility>

#include "cqkv/codebook_file.h"

#include "codebook_file/kv_shape.h"
#include "core/parallel.h"
#include "eval/kv_device.h"
#include "eval/memory_plan.h"
#include "eval/tokens.h"
#include "llama/handles.h"
#include "llama/log.h"

namespace cqkv::eval {
namespace {

// One cache under comparison.
struct Contender {
  Variant variant;
  LlamaContext context;  // null between rounds, unless contexts stay
  VariantReport report;
  PairStats stats;
};

// What a context decodes at once: tokens [begin, end) of a chunk.
struct Step {
  int chunk = 0;
  int begin = 0;
  int end = 0;
};

std::string with_reason(const std::string& message, const std::string& reason) {
  return reason.empty() ? message : message + ": " + reason;
}

class Evaluation {
 public:
  Evaluation(const PerplexityOptions& options, const ProgressCallback& progress)
      : options_(options), progress_(progress), threads_(options.n_threads) {}

  Result<PerplexityReport> run();

 private:
  Status check_options() const;
  Status check_codebooks();
  Status check_codebook(const Variant& variant, VariantReport& report);
  Status load_model();
  Status load_text();
  void plan();
  Status check_contexts();
  Status describe(Contender& contender) const;
  Status make_context(const Variant& variant, LlamaContext& out);
  Status make_again(Contender& contender);
  Status run_round(std::span<const Step> round);
  Status run_base(std::span<const Step> round);
  Status run_contender(Contender& contender, std::span<const Step> round);
  Status decode(llama_context* context, const std::string& name, const Step& step);
  Status score_base(const Step& step);
  Status compare(Contender& contender, const Step& step, const float* base);
  Status report_progress();
  PerplexityReport report();

  int first_scored() const { return options_.score == ScoreMode::kHalf ? options_.n_ctx / 2 : 0; }

  // Positions of a step whose logits predict a scored token; none if first >= second.
  std::pair<int, int> scored(const Step& step) const {
    return {std::max(step.begin, first_scored()), std::min(step.end, options_.n_ctx - 1)};
  }

  // Logits of the scored tokens of a step.
  std::size_t n_logits(const Step& step) const {
    const auto [first, stop] = scored(step);
    return static_cast<std::size_t>(std::max(0, stop - first)) * n_vocab_;
  }

  WindowOverride window(const Variant& variant) const {
    return variant.window.or_else(options_.window);
  }

  int ubatch(const Variant& variant) const {
    const int wanted =
        variant.n_ubatch > 0 ? variant.n_ubatch : std::min(options_.n_ubatch, options_.n_batch);
    return std::min(wanted, options_.n_ctx);
  }

  llama_token target(int chunk, int position) const {
    return tokens_[static_cast<std::size_t>(chunk) * options_.n_ctx + position + 1];
  }

  const PerplexityOptions& options_;
  const ProgressCallback& progress_;
  ThreadParallelFor threads_;
  ModelKvShape shape_;
  std::optional<KvDevice> device_;
  LlamaModel model_;
  LlamaContext base_;
  std::vector<std::unique_ptr<Contender>> contenders_;
  std::vector<llama_token> tokens_;
  bool bos_ = false;
  std::size_t n_vocab_ = 0;
  int n_chunks_ = 0;
  int n_cells_ = 0;
  std::uint64_t most_centroid_bytes_ = 0;  // of one codebook's file
  int n_step_ = 0;                         // tokens per call of llama_decode, of all contexts
  std::vector<Step> steps_;                // of all chunks
  MemoryPlan plan_;
  std::vector<float> base_logits_;  // of the round's scored tokens
  RunningMean nll_base_;
  std::size_t n_done_ = 0;
  std::vector<LogitComparison> compared_;
  std::vector<double> nll_;
};

Status Evaluation::check_options() const {
  if (options_.n_ctx < 4) {
    return invalid_argument("context size: got " + std::to_string(options_.n_ctx) +
                            ", want at least 4");
  }
  if (options_.n_batch < 1 || options_.n_ubatch < 1 || options_.n_threads < 1) {
    return invalid_argument("batch sizes and threads: got " + std::to_string(options_.n_batch) +
                            ", " + std::to_string(options_.n_ubatch) + " and " +
                            std::to_string(options_.n_threads) + ", want at least 1 each");
  }
  if (options_.n_chunks == 0 || options_.n_chunks < -1) {
    return invalid_argument("chunks: got " + std::to_string(options_.n_chunks) +
                            ", want at least 1, or -1 for all");
  }
  return {};
}

// Everything that can be refused without loading weights.
Status Evaluation::check_codebooks() {
  auto shape = read_kv_shape(options_.model_path);
  if (!shape.ok()) {
    return shape.status();
  }
  shape_ = *std::move(shape);
  for (const Variant& variant : options_.variants) {
    contenders_.push_back(std::make_unique<Contender>());
    contenders_.back()->variant = variant;
    contenders_.back()->report.variant = variant;
    CQKV_RETURN_IF_ERROR(check_codebook(variant, contenders_.back()->report));
  }
  VariantReport unused;
  return check_codebook(options_.base, unused);
}

Status Evaluation::check_codebook(const Variant& variant, VariantReport& report) {
  if (variant.kind != CacheKind::kCoded) {
    return {};
  }
  const auto codebook = read_codebook(variant.codebook_path);
  if (!codebook.ok()) {
    return codebook.status();
  }
  report.codebook_name = codebook->origin.name;
  report.codebook_identity = codebook->identity();
  most_centroid_bytes_ = std::max<std::uint64_t>(most_centroid_bytes_, codebook->centroid_bytes());
  return check_fits(*codebook, variant.codebook_path, shape_);
}

Status Evaluation::load_model() {
  bool uses_device = options_.base.uses_device();
  for (const Variant& variant : options_.variants) {
    uses_device = uses_device || variant.uses_device();
  }
  ggml_backend_dev_t devices[2] = {nullptr, nullptr};  // ended by a null
  llama_model_params params = llama_model_default_params();
  params.n_gpu_layers = 0;
  if (uses_device) {
    auto device = KvDevice::load(options_.device_library);
    if (!device.ok()) {
      return device.status();
    }
    device_ = *device;
    devices[0] = device_->device();
    params.n_gpu_layers = 999;
  }
  params.devices = devices;
  take_llama_errors();
  model_.reset(llama_model_load_from_file(options_.model_path.c_str(), params));
  if (model_ == nullptr) {
    return corrupt(
        with_reason(options_.model_path + ": libllama cannot load the model", take_llama_errors()));
  }
  const llama_vocab* vocab = llama_model_get_vocab(model_.get());
  n_vocab_ = static_cast<std::size_t>(llama_vocab_n_tokens(vocab));
  bos_ = options_.add_bos && llama_vocab_get_add_bos(vocab);
  return {};
}

// Chunks of n_ctx tokens whose second half is the first again. An odd chunk begins its copy with
// its last token.
std::vector<llama_token> said_twice(const std::vector<llama_token>& tokens, std::size_t n_ctx) {
  const std::size_t n = (n_ctx + 1) / 2;
  std::vector<llama_token> result;
  for (std::size_t first = 0; first + n <= tokens.size(); first += n) {
    for (std::size_t i = 0; i < n_ctx; i++) {
      result.push_back(tokens[first + i % n]);
    }
  }
  return result;
}

Status Evaluation::load_text() {
  auto tokens = tokenize_file(llama_model_get_vocab(model_.get()), options_.text_path, bos_);
  if (!tokens.ok()) {
    return tokens.status();
  }
  tokens_ = options_.repeat ? said_twice(*tokens, static_cast<std::size_t>(options_.n_ctx))
                            : *std::move(tokens);
  const auto n_whole = static_cast<int>(tokens_.size() / static_cast<std::size_t>(options_.n_ctx));
  if (n_whole == 0) {
    return invalid_argument(options_.text_path + ": the text has " +
                            std::to_string(tokens_.size()) + " tokens, want at least " +
                            std::to_string(options_.n_ctx) +
                            " (one context); give a longer text or a smaller -c");
  }
  n_chunks_ = options_.n_chunks < 0 ? n_whole : std::min(options_.n_chunks, n_whole);
  return {};
}

Status Evaluation::make_context(const Variant& variant, LlamaContext& out) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<std::uint32_t>(options_.n_ctx);
  params.n_batch = static_cast<std::uint32_t>(n_step_);
  params.n_ubatch = static_cast<std::uint32_t>(ubatch(variant));
  params.n_seq_max = 1;
  params.n_threads = options_.n_threads;
  params.n_threads_batch = options_.n_threads;
  params.flash_attn_type =
      variant.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.type_k = variant.cache_type;
  params.type_v = variant.cache_type;
  params.offload_kqv = variant.uses_device();
  params.swa_full = false;  // as llama.cpp's programs
  params.no_perf = true;
  if (variant.uses_device()) {
    CQKV_RETURN_IF_ERROR(device_->set_window(window(variant)));
    CQKV_RETURN_IF_ERROR(device_->use_byte_tables(variant.byte_tables));
    CQKV_RETURN_IF_ERROR(device_->set_codebook(variant.codebook_path));
  }
  take_llama_errors();
  out.reset(llama_init_from_model(model_.get(), params));
  if (out != nullptr) {
    return {};
  }
  std::string reason = variant.uses_device() ? device_->last_error() : std::string();
  if (reason.empty()) {
    reason = take_llama_errors();
  }
  return unsupported(with_reason(variant.text + ": libllama cannot make a context", reason));
}

void Evaluation::plan() {
  n_step_ = ubatch(options_.base);
  for (const auto& contender : contenders_) {
    n_step_ = std::max(n_step_, ubatch(contender->variant));
  }
  EvaluationSize size;
  size.n_variants = static_cast<int>(contenders_.size());
  size.n_chunks = n_chunks_;
  for (int begin = 0; begin < options_.n_ctx; begin += n_step_) {
    steps_.push_back({0, begin, std::min(begin + n_step_, options_.n_ctx)});
    const std::uint64_t n_bytes = n_logits(steps_.back()) * sizeof(float);
    size.step_logit_bytes = std::max(size.step_logit_bytes, n_bytes);
    size.chunk_logit_bytes += n_bytes;
  }
  size.steps_per_chunk = static_cast<int>(steps_.size());
  // A codebook is in memory in three orders, two and a half times its file.
  size.context_bytes =
      plain_cache_size(shape_, static_cast<std::size_t>(options_.n_ctx)).f16_bytes +
      most_centroid_bytes_ * 5 / 2;
  plan_ = plan_memory(size);
  for (int chunk = 1; chunk < n_chunks_; chunk++) {
    for (int i = 0; i < size.steps_per_chunk; i++) {
      Step step = steps_[static_cast<std::size_t>(i)];
      step.chunk = chunk;
      steps_.push_back(step);
    }
  }
}

// Makes every context once, so that what is refused is refused before the work.
Status Evaluation::check_contexts() {
  CQKV_RETURN_IF_ERROR(make_context(options_.base, base_));
  n_cells_ = static_cast<int>(llama_n_ctx(base_.get()));
  for (const auto& contender : contenders_) {
    CQKV_RETURN_IF_ERROR(make_context(contender->variant, contender->context));
    CQKV_RETURN_IF_ERROR(describe(*contender));
    if (!plan_.keep_contexts) {
      contender->context.reset();
    }
  }
  return {};
}

// What the report says of a cache; its context is the newest one.
Status Evaluation::describe(Contender& contender) const {
  const auto n_cells = static_cast<std::size_t>(n_cells_);
  VariantReport& report = contender.report;
  if (contender.variant.uses_device()) {
    report.device_cache_bytes = device_->cache_bytes();
  }
  if (contender.variant.kind != CacheKind::kCoded) {
    report.size = plain_cache_size(shape_, n_cells, contender.variant.cache_type);
    return {};
  }
  // Read again rather than kept: a large model's codebooks take as much memory as its cache.
  const auto codebook = read_codebook(contender.variant.codebook_path);
  if (!codebook.ok()) {
    return codebook.status();
  }
  report.window = window(contender.variant).spec_of(*codebook);
  report.size = coded_cache_size(*codebook, shape_, n_cells, report.window);
  return {};
}

Status Evaluation::decode(llama_context* context, const std::string& name, const Step& step) {
  const auto [chunk, begin, end] = step;
  if (begin == 0) {
    llama_memory_clear(llama_get_memory(context), true);
  }
  const std::size_t n_tokens = static_cast<std::size_t>(end - begin);
  const auto first = static_cast<std::ptrdiff_t>(chunk) * options_.n_ctx + begin;
  std::vector<llama_token> tokens(tokens_.begin() + first,
                                  tokens_.begin() + first + static_cast<std::ptrdiff_t>(n_tokens));
  if (begin == 0 && bos_) {
    tokens[0] = llama_vocab_bos(llama_model_get_vocab(model_.get()));
  }
  const auto [first_scored, end_scored] = scored(step);
  std::vector<llama_pos> positions(n_tokens);
  std::vector<std::int8_t> wanted(n_tokens);
  for (int position = begin; position < end; position++) {
    positions[static_cast<std::size_t>(position - begin)] = position;
    wanted[static_cast<std::size_t>(position - begin)] =
        position >= first_scored && position < end_scored ? 1 : 0;
  }
  llama_batch batch = {};
  batch.n_tokens = end - begin;
  batch.token = tokens.data();
  batch.pos = positions.data();
  batch.logits = wanted.data();
  take_llama_errors();
  const int error = llama_decode(context, batch);
  if (error == 0) {
    return {};
  }
  std::string reason = device_ ? device_->last_error() : std::string();
  if (reason.empty()) {
    reason = take_llama_errors();
  }
  return {StatusCode::kInternal,
          with_reason(name + ": llama_decode failed with " + std::to_string(error) + " in chunk " +
                          std::to_string(chunk) + " at position " + std::to_string(begin),
                      reason)};
}

Status not_finite(const std::string& name, int chunk, int position) {
  return {StatusCode::kInternal, name + ": the logits of chunk " + std::to_string(chunk) +
                                     " at position " + std::to_string(position) +
                                     " are not finite"};
}

// Keeps the logits for the variants, unless the context keeps them.
Status Evaluation::score_base(const Step& step) {
  const auto [first, stop] = scored(step);
  if (first >= stop) {
    return {};
  }
  const int chunk = step.chunk;
  const float* logits = llama_get_logits(base_.get());
  if (!plan_.keep_contexts) {
    base_logits_.insert(base_logits_.end(), logits, logits + n_logits(step));
  }
  nll_.resize(static_cast<std::size_t>(stop - first));
  threads_.run(stop - first, [&, first_row = first](int row, int) {
    nll_[static_cast<std::size_t>(row)] =
        negative_log_likelihood(logits + static_cast<std::size_t>(row) * n_vocab_, n_vocab_,
                                static_cast<std::size_t>(target(chunk, first_row + row)));
  });
  for (std::size_t row = 0; row < nll_.size(); row++) {
    if (!std::isfinite(nll_[row])) {
      return not_finite("the 16-bit cache", chunk, first + static_cast<int>(row));
    }
    nll_base_.add(nll_[row]);
  }
  return {};
}

Status Evaluation::compare(Contender& contender, const Step& step, const float* base) {
  const auto [first, stop] = scored(step);
  if (first >= stop) {
    return {};
  }
  const int chunk = step.chunk;
  const float* other = llama_get_logits(contender.context.get());
  compared_.resize(static_cast<std::size_t>(stop - first));
  threads_.run(stop - first, [&, first_row = first](int row, int) {
    const std::size_t offset = static_cast<std::size_t>(row) * n_vocab_;
    compared_[static_cast<std::size_t>(row)] =
        compare_logits(base + offset, other + offset, n_vocab_,
                       static_cast<std::size_t>(target(chunk, first_row + row)));
  });
  for (std::size_t row = 0; row < compared_.size(); row++) {
    if (!std::isfinite(compared_[row].nll_other) || !std::isfinite(compared_[row].kl_divergence)) {
      return not_finite(contender.variant.text, chunk, first + static_cast<int>(row));
    }
    contender.stats.add(compared_[row]);
  }
  return {};
}

Status Evaluation::report_progress() {
  Progress progress;
  progress.n_done = n_done_;
  progress.n_total = (contenders_.size() + 1) * steps_.size();
  progress.ppl_base = nll_base_.count() == 0 ? 0 : std::exp(nll_base_.mean());
  progress.n_bytes = plan_.n_bytes;
  if (progress_ && !progress_(progress)) {
    return {StatusCode::kCancelled, "cancelled"};
  }
  return {};
}

Status Evaluation::run_base(std::span<const Step> round) {
  if (base_ == nullptr) {
    CQKV_RETURN_IF_ERROR(make_context(options_.base, base_));
  }
  base_logits_.clear();
  for (const Step& step : round) {
    CQKV_RETURN_IF_ERROR(decode(base_.get(), "the 16-bit cache", step));
    CQKV_RETURN_IF_ERROR(score_base(step));
    n_done_++;
    CQKV_RETURN_IF_ERROR(report_progress());
  }
  if (!plan_.keep_contexts) {
    base_.reset();
  }
  return {};
}

// The context of a later round. Its codebook is read anew and must still be the same one.
Status Evaluation::make_again(Contender& contender) {
  CQKV_RETURN_IF_ERROR(make_context(contender.variant, contender.context));
  VariantReport now;
  CQKV_RETURN_IF_ERROR(check_codebook(contender.variant, now));
  return now.codebook_identity == contender.report.codebook_identity
             ? Status()
             : Status(StatusCode::kMismatch,
                      contender.variant.codebook_path +
                          ": the codebook was replaced while it was measured; run again");
}

Status Evaluation::run_contender(Contender& contender, std::span<const Step> round) {
  if (contender.context == nullptr) {
    CQKV_RETURN_IF_ERROR(make_again(contender));
  }
  const float* base = plan_.keep_contexts ? llama_get_logits(base_.get()) : base_logits_.data();
  for (const Step& step : round) {
    CQKV_RETURN_IF_ERROR(decode(contender.context.get(), contender.variant.text, step));
    CQKV_RETURN_IF_ERROR(compare(contender, step, base));
    base += n_logits(step);
    if (step.end == options_.n_ctx) {
      contender.stats.end_chunk();
    }
    n_done_++;
    CQKV_RETURN_IF_ERROR(report_progress());
  }
  if (!plan_.keep_contexts) {
    contender.context.reset();
  }
  return {};
}

// Steps that the base decodes before every variant does.
Status Evaluation::run_round(std::span<const Step> round) {
  CQKV_RETURN_IF_ERROR(run_base(round));
  for (const auto& contender : contenders_) {
    CQKV_RETURN_IF_ERROR(run_contender(*contender, round));
  }
  return {};
}

PerplexityReport Evaluation::report() {
  PerplexityReport result;
  result.model_name = shape_.name;
  result.architecture = shape_.architecture;
  result.n_text_tokens = tokens_.size();
  result.n_chunks = n_chunks_;
  result.n_cells = n_cells_;
  result.bos = bos_;
  result.n_scored = nll_base_.count();
  result.ppl_base = std::exp(nll_base_.mean());
  result.ppl_base_se = result.ppl_base * nll_base_.standard_error();
  result.base_size = plain_cache_size(shape_, static_cast<std::size_t>(result.n_cells));
  for (const auto& contender : contenders_) {
    contender->report.summary = contender->stats.summary();
    result.variants.push_back(contender->report);
  }
  return result;
}

Result<PerplexityReport> Evaluation::run() {
  CQKV_RETURN_IF_ERROR(check_options());
  CQKV_RETURN_IF_ERROR(check_codebooks());
  CQKV_RETURN_IF_ERROR(load_model());
  CQKV_RETURN_IF_ERROR(load_text());
  plan();
  CQKV_RETURN_IF_ERROR(report_progress());
  CQKV_RETURN_IF_ERROR(check_contexts());
  const auto n_round = static_cast<std::size_t>(plan_.steps_per_round);
  for (std::size_t first = 0; first < steps_.size(); first += n_round) {
    CQKV_RETURN_IF_ERROR(
        run_round(std::span(steps_).subspan(first, std::min(n_round, steps_.size() - first))));
  }
  return report();
}

}  // namespace

Result<PerplexityReport> measure_perplexity(const PerplexityOptions& options,
                                            const ProgressCallback& progress) {
  return Evaluation(options, progress).run();
}

}  // namespace cqkv::eval
