// The codebooks that the device may use: read from the paths in CQKV_CODEBOOK (or
// set by a program through cqkv_set_codebook), matched to cache tensors by layer
// and width. Whether a codebook really belongs to the model is checked later, by
// fingerprint, when the graph shows the model's weights (graph_ops.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cqkv/codebook.h"

#include "device/names.h"

namespace cqkv::device {

struct LoadedCodebook {
  std::string path;
  Codebook codebook;
  std::uint64_t identity = 0;
};

class CodebookLibrary {
 public:
  /// Reads files separated by ':'; an empty list is a library without codebooks.
  static Result<std::shared_ptr<const CodebookLibrary>> load(const std::string& paths);

  bool empty() const { return books_.empty(); }

  /// The first codebook that has this layer and, where it codes this side, this
  /// many channels; null if none.
  const LoadedCodebook* match(const CacheName& name, std::int64_t n_channels) const;

 private:
  std::vector<std::unique_ptr<const LoadedCodebook>> books_;
};

/// The library for caches allocated from now on. Loaded from the environment on
/// first use; never null.
Result<std::shared_ptr<const CodebookLibrary>> current_library();

/// Replaces it.
void set_current_library(std::shared_ptr<const CodebookLibrary> library);

}  // namespace cqkv::device
