// What a context under comparison is: a codebook, the device's own 16-bit mode, or one
// of stock's variants, as named on the command line.
#pragma once

#include <string>

#include <ggml.h>

#include "cqkv/status.h"

#include "cache/window_pool.h"

namespace cqkv::eval {

enum class CacheKind {
  kStock,    ///< llama.cpp's own cache on the CPU.
  kUncoded,  ///< 16-bit rows through the KV device.
  kCoded,    ///< Codes of a codebook through the KV device.
};

struct Variant {
  CacheKind kind = CacheKind::kStock;
  std::string text;           ///< As given.
  std::string codebook_path;  ///< kCoded only.
  bool flash_attention = true;
  ggml_type cache_type = GGML_TYPE_F16;  ///< kStock: of keys and values.
  int n_ubatch = 0;                      ///< 0: that of the run.
  WindowOverride window;                 ///< kCoded: in the place of the codebook's.
  bool byte_tables = true;               ///< kCoded: whether attention may use centroids as bytes.

  bool uses_device() const { return kind != CacheKind::kStock; }

  /// Reads a path, "none", "stock", "stock-nofa", "stock-<one of llama.cpp's cache types>", as
  /// stock-q8_0, or "stock-ub:<N>"; each but the last
  /// may end in "@ub:<N>", a path also in "@window:<N>", "@sinks:<N>",
  /// "@spare:<N>" and "@bytes:<0 or 1>", in any order.
  static Result<Variant> parse(const std::string& text);
};

}  // namespace cqkv::eval
