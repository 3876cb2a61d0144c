// What the tests over whole models share: a context of a tiny model, on the device or
// on the CPU alone, what it computes, and the rows of its cache seen from two sides:
// as the model's graph makes them (keys before their rotation), and as the device's
// saved records decode. The device and its errors are in device_fixture.h.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cqkv/codebook.h"

#include "llama/handles.h"
#include "support/tiny_models.h"

namespace cqkv::device {

/// Writes the codebooks to files that are gone afterwards, and makes the device use them.
void use_codebooks(const std::vector<Codebook>& codebooks);

/// libllama's and the device's log since the last call; caught from the first call on.
std::string take_log();

/// Rows of a layer's keys or values by token; absent where the cache holds none.
using CacheRows = std::map<std::pair<KvKind, int>, std::map<int, std::vector<float>>>;

struct RunOptions {
  bool on_device = true;
  int n_ubatch = 64;
  bool embeddings = false;  ///< Pooled embeddings of the prompt instead of logits.
  bool watch_rows = false;  ///< Keep what the graph stores; not on the device.
};

class ModelRun {
 public:
  static constexpr int kPromptTokens = 100;
  static constexpr int kSteps = 4;

  ModelRun(const testing::ModelSpec& spec, const RunOptions& options);

  /// Whether the context could be made.
  bool ok() const { return context_ != nullptr; }

  /// A prompt in one batch, then steps of one token: the logits of all tokens (or the
  /// embedding of the prompt). Empty if libllama reports an error.
  std::vector<float> evaluate();

  /// Rows as the graph stored them, keys before their rotation.
  const CacheRows& watched_rows() const { return watched_; }

  /// Rows decoded from the records of a saved state. A cache none of whose layers has a
  /// rotation knows no positions: tokens of `unplaced` layers are numbered as stored.
  CacheRows decoded_rows(const Codebook& codebook, const std::vector<int>& unplaced) const;

 private:
  static bool on_node(ggml_tensor* node, bool ask, void* self);
  void watch(const ggml_tensor* node);
  bool decode(int first, int n_tokens);
  void collect(int n_tokens, std::vector<float>& outputs) const;

  RunOptions options_;
  LlamaModel model_;
  LlamaContext context_;
  std::map<const ggml_tensor*, std::vector<float>> computed_;  // [token, channel]
  CacheRows watched_;
};

}  // namespace cqkv::device
