// The recipe: from a model file and texts to a codebook. Reading texts is text.h,
// keys and values come from capture.h or gradient.h, learning is
// codebook/learn.h, writing the file src/codebook_file.
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

struct CalibrationOptions {
  std::string model_path;
  TextOptions text;
  CodecSpec key_spec{8, 8};
  CodecSpec value_spec{8, 8};
  Weighting weighting = Weighting::kFisher;
  std::uint64_t seed = 1;
  int n_threads = 1;
  int max_iterations = 100;    ///< Of k-means.
  std::uint32_t window = 128;  ///< Stored in the codebook as the device's default.
  std::uint32_t sinks = 4;
  std::string license;  ///< Of the codebook; may be empty.
};

/// Where a calibration stands; `stage` is a constant text.
struct CalibrationProgress {
  std::string_view stage;  ///< "reading texts", "running the model", "learning codebooks".
  std::size_t n_done = 0;  ///< Sequences, or tensors.
  std::size_t n_total = 0;
};

/// What a person may want to know of a finished calibration.
struct CalibrationStats {
  std::size_t n_sequences = 0;
  std::size_t n_tokens = 0;
  double mean_loss = 0.0;  ///< Nats a predicted token; 0 with uniform weights.
  double seconds_model = 0.0;
  double seconds_learning = 0.0;

  struct Tensor {
    int layer = 0;
    KvKind kind = KvKind::kKey;
    LearnStats learning;
  };

  std::vector<Tensor> tensors;  ///< Keys and values of each coded layer, in order.
};

struct Calibration {
  Codebook codebook;
  CalibrationStats stats;
};

/// Called from the calling thread, between sequences and tensors.
using CalibrationCallback = std::function<void(const CalibrationProgress&)>;

/// Runs the model over the texts and learns the codebooks of all its attention layers.
///
/// Layers of the model that keep no keys and values (recurrent ones) get no codebook.
/// Memory: all rows as f32, layers * 2 * n_tokens * channels * 4 bytes, plus the Fisher
/// weights (1 / group_dim of that), plus the model's own.
/// Numerics: for given files, options and instruction set the result does not depend on
/// the number of threads with Fisher weights; with uniform weights it depends on
/// libllama, which rounds the same for any number of threads.
/// @return the errors of text.h, capture.h, gradient.h and learn.h; kUnsupported for
///   Fisher weights on an architecture without gradients; kCancelled.
Result<Calibration> calibrate(const CalibrationOptions& options,
                              const CalibrationCallback& progress = {},
                              const std::atomic<bool>* cancel = nullptr);

}  // namespace cqkv
