// The codebooks that the device may use: read from the paths in CQKV_CODEBOOK (or
// set by a program through cqkv_set_codebook), matched to cache tensors by layer
// and width. Whether a codebook really belongs to the model is checked later, by
// fingerprint, when the graph shows the model's weights (graph_ops.h). Also how large
// the exact window of their caches is.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cqkv/codebook.h"

#include "cache/exact_window.h"
#include "graph/names.h"

namespace cqkv::device {

/// What overrides the codebooks' own windows, and how many sequences a cache with one
/// stream is to be prepared for: the device is not told by the host.
struct WindowChoice {
  WindowOverride window;
  int n_sequences = 4;  ///< llama-server's default number of slots.

  /// From CQKV_WINDOW, CQKV_SINKS, CQKV_SPARE and CQKV_SEQUENCES.
  static Result<WindowChoice> from_environment();
};

struct LoadedCodebook {
  std::string path;
  Codebook codebook;
  std::uint64_t identity = 0;
};

class CodebookLibrary {
 public:
  /// Reads files separated by ':'; an empty list (or null) is a library without codebooks.
  /// Throws nothing: kResourceExhausted if memory runs out.
  static Result<std::shared_ptr<const CodebookLibrary>> load(const char* paths);

  bool empty() const { return books_.empty(); }

  /// Files and models, for messages: "a.gguf (of SmolLM2), b.gguf (of Qwen)".
  std::string names() const;

  /// The window of caches coded with this codebook.
  WindowSpec window_of(const LoadedCodebook& book) const {
    return window_.window.spec_of(book.codebook);
  }

  /// Whether attention may use centroids as bytes; otherwise it decodes to floats.
  bool uses_byte_tables() const { return byte_tables_; }

  /// The exact rows of one stream out of n_streams of a cache coded with this codebook.
  WindowPool pool_of(const LoadedCodebook& book, std::size_t n_streams,
                     std::size_t cells_per_stream) const;

  /// The first codebook that has this layer and, where it codes this side, this
  /// many channels; null if none.
  const LoadedCodebook* match(const CacheName& name, std::int64_t n_channels) const;

 private:
  static Result<std::shared_ptr<const CodebookLibrary>> read(const std::string& paths);

  std::vector<std::unique_ptr<const LoadedCodebook>> books_;
  WindowChoice window_;
  bool byte_tables_ = true;
};

/// The library for caches allocated from now on. Loaded from the environment on
/// first use; never null. Fails if CQKV_FORCE_ISA names no usable instruction set.
Result<std::shared_ptr<const CodebookLibrary>> current_library();

/// Replaces it.
void set_current_library(std::shared_ptr<const CodebookLibrary> library);

/// Replaces the window of libraries loaded from now on; the environment no longer counts.
void set_window_choice(const WindowChoice& choice);

/// The one set, or that of the environment.
Result<WindowChoice> current_window_choice();

/// Whether libraries loaded from now on use centroids as bytes; the environment
/// (CQKV_BYTE_TABLES) no longer counts.
void set_byte_tables(bool wanted);

}  // namespace cqkv::device
