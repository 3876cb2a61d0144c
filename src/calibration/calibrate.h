// The recipe: from a model file and texts to codebooks. Reading texts is text.h,
// what to say of them text_check.h, keys and values come from capture.h or gradient.h,
// learning is codebook/learn.h, writing the file src/codebook_file.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "cqkv/codebook.h"
#include "cqkv/status.h"
#include "cqkv/types.h"

#include "calibration/text.h"
#include "codebook/learn.h"

namespace cqkv {

/// How much a token counts in learning.
enum class Weighting {
  kUniform,  ///< All alike; any architecture.
  kFisher,   ///< By the squared gradients of the loss; architectures of gradient.h.
};

std::string_view weighting_name(Weighting weighting);  // "uniform", "fisher"

/// @return kInvalidArgument, naming the legal values, for any other text.
Result<Weighting> parse_weighting(std::string_view text);

/// What a codebook is to hold: how keys and how values are coded, one of them perhaps exact.
struct KvConfig {
  CodecSpec keys{8, 8};
  CodecSpec values{8, 8};

  /// "8c8b" if both are alike, else "4c8b-8c8b", keys first.
  std::string name() const;

  const CodecSpec& spec(KvKind kind) const { return kind == KvKind::kKey ? keys : values; }

  bool operator==(const KvConfig&) const = default;
};

/// What a codebook of a budget is called: "1.00b".
std::string budget_name(double bits);

struct CalibrationOptions {
  std::string model_path;
  TextOptions text;
  /// One codebook each, all different. The model runs once for all of them.
  std::vector<KvConfig> configs{KvConfig{}};
  /// Instead of configs: bits a channel, one codebook each, in which every KV head of keys and of
  /// values has a rate of its own (rates.h): codes of 8 bits for 1 to 64 channels, as far as they
  /// divide the heads, or none. Needs Fisher weights. Rates are chosen on as many tokens again as a
  /// quarter of the sequences have, which follow in the texts.
  std::vector<double> bits;
  /// With `bits`: groups in bases learned for each head (bases.h), not of neighbouring channels.
  bool bases = true;
  /// Only gradients through queries that read codes count: those that `window` and `sinks` leave.
  bool far_gradients = false;
  Weighting weighting = Weighting::kFisher;
  std::uint64_t seed = 1;
  int n_threads = 1;
  int max_iterations = 100;    ///< Of k-means.
  std::uint32_t window = 128;  ///< Stored in the codebooks as the device's default.
  std::uint32_t sinks = 4;
  std::string license;  ///< Of the codebooks; may be empty.
};

/// Where a calibration stands; `stage` is a constant text.
struct CalibrationProgress {
  std::string_view stage;  ///< "reading texts", "running the model", "learning codebooks" ...
  std::size_t n_done = 0;  ///< Sequences, or tensors; where rates are chosen, of all budgets.
  std::size_t n_total = 0;
};

/// Called from the calling thread, between sequences and tensors; either may be empty.
struct CalibrationEvents {
  std::function<void(const CalibrationProgress&)> progress;
  /// One line on something that works but will probably disappoint (text_check.h): said as
  /// soon as the texts are read, before the long steps.
  std::function<void(const std::string&)> warning;
};

/// What a person may want to know of a finished calibration.
struct CalibrationStats {
  std::size_t n_sequences = 0;
  std::size_t n_tokens = 0;    ///< Held-out ones included.
  std::size_t n_held_out = 0;  ///< Not learned from; see held_out_range in samples.h.
  std::size_t n_measured = 0;  ///< With budgets: of the texts on which rates were chosen.
  double mean_loss = 0.0;      ///< Nats a predicted token; 0 with uniform weights.
  double seconds_model = 0.0;
  double seconds_learning = 0.0;
  double seconds_choosing = 0.0;  ///< With budgets.
};

/// One configuration's codebook, or one budget's.
struct CalibratedCodebook {
  std::string name;   ///< Of the configuration, or "1.00b".
  KvConfig config;    ///< Not with budgets.
  Codebook codebook;  ///< `origin.held_out` says what coding loses on the held-out tokens.

  struct Tensor {
    int layer = 0;
    KvKind kind = KvKind::kKey;
    LearnStats learning;
    double held_out_error = 0.0;  ///< Of the held-out rows, as learning.relative_error.
  };

  std::vector<Tensor>
      tensors;  ///< Keys and values of each coded layer, in order; not with budgets.
};

struct Calibration {
  std::vector<CalibratedCodebook> codebooks;  ///< In the order of the configurations.
  CalibrationStats stats;
};

/// Runs the model over the texts and learns the codebooks of all its attention layers.
///
/// Layers of the model that keep no keys and values (recurrent ones) get no codebook.
/// A sixteenth of the tokens is held out from learning, to measure what coding loses on text
/// that the codebook does not know.
/// Memory: all rows as f32, layers * 2 * n_tokens * channels * 4 bytes, plus the Fisher
/// weights (for each group_dim among the configurations 1 / group_dim of that), plus the
/// model's own.
/// Numerics: for given files, options and instruction set the result does not depend on
/// the number of threads with Fisher weights; with uniform weights it depends on
/// libllama, which rounds the same for any number of threads. A codebook does not depend on
/// the other configurations.
/// @return the errors of text.h, capture.h, gradient.h and learn.h; kInvalidArgument for
///   configurations that are none, twice the same or all exact, or with fewer tokens than
///   centroids; kUnsupported for Fisher weights on an architecture without gradients;
///   kCancelled.
Result<Calibration> calibrate(const CalibrationOptions& options,
                              const CalibrationEvents& events = {},
                              const std::atomic<bool>* cancel = nullptr);

}  // namespace cqkv
