// Perplexity of a text under several caches of one model in one process: the 16-bit
// base, and every variant against it, token by token. Weights are loaded once; how many
// contexts and logits are in memory at a time is planned (memory_plan.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cqkv/status.h"

#include "eval/cache_size.h"
#include "eval/pair_stats.h"
#include "eval/variant.h"

namespace cqkv::eval {

enum class ScoreMode {
  kHalf,  ///< The second half of each chunk, as llama-perplexity.
  kAll,   ///< Every position but the first.
};

struct PerplexityOptions {
  std::string model_path;
  std::string text_path;
  std::string device_library;  ///< Needed if a variant uses the device.
  Variant base;                ///< Stock 16-bit by default.
  std::vector<Variant> variants;
  int n_ctx = 512;    ///< Tokens of a chunk.
  int n_chunks = -1;  ///< At most; -1: all that the text has.
  int n_batch = 2048;
  int n_ubatch = 512;
  int n_threads = 1;
  ScoreMode score = ScoreMode::kHalf;
  /// Each chunk is half a chunk of text, said twice; the second time is scored (ScoreMode::kHalf).
  /// It measures copying from n_ctx / 2 tokens back.
  bool repeat = false;
  WindowOverride window;  ///< Of variants that name none.
  bool add_bos = true;    ///< If the model wants one: in place of each chunk's first token.
};

struct Progress {
  std::size_t n_done = 0;  ///< Decoded batches of all contexts.
  std::size_t n_total = 0;
  double ppl_base = 0;        ///< So far; 0 before the first scored token.
  std::uint64_t n_bytes = 0;  ///< About what it takes beside the model (MemoryPlan).
};

/// Called from the calling thread, first before anything is decoded; returning false cancels.
using ProgressCallback = std::function<bool(const Progress&)>;

struct VariantReport {
  Variant variant;
  std::string codebook_name;  ///< general.name of a codebook.
  std::uint64_t codebook_identity = 0;
  PairSummary summary;
  WindowSpec window;
  CacheSize size;
  /// What the device allocated, if it says; compare with size.cache_bytes().
  std::optional<std::uint64_t> device_cache_bytes;
};

struct PerplexityReport {
  std::string model_name;
  std::string architecture;
  std::size_t n_text_tokens = 0;
  int n_chunks = 0;
  int n_cells = 0;  ///< Cells of each cache: n_ctx padded by libllama.
  bool bos = false;
  std::size_t n_scored = 0;
  double ppl_base = 0;
  double ppl_base_se = 0;
  CacheSize base_size;
  std::vector<VariantReport> variants;
};

/// @return kInvalidArgument for options that cannot work and a text that is too short
///   (found and wanted lengths), kMismatch for a codebook of another model (both names),
///   kCancelled, or what reading the files or libllama gave.
/// Call catch_llama_log before, so that failures of libllama can be explained.
Result<PerplexityReport> measure_perplexity(const PerplexityOptions& options,
                                            const ProgressCallback& progress);

}  // namespace cqkv::eval
