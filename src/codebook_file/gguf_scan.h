// A first pass over the header of a GGUF file that checks everything ggml's reader
// would abort, print or allocate on, so that gguf_init may then be called on any file
// that passes. Only lengths, types and places are looked at, never meaning.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "cqkv/status.h"

struct gguf_context;

namespace cqkv {

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

using FileHandle = std::unique_ptr<std::FILE, FileCloser>;

struct GgufFreer {
  void operator()(gguf_context* context) const;
};

using GgufHandle = std::unique_ptr<gguf_context, GgufFreer>;

/// An open GGUF file: its checked header, and the file for reading tensor data.
struct CheckedGguf {
  FileHandle file;
  std::uint64_t size_bytes = 0;
  GgufHandle header;
};

/// Opens a regular file and reads its header. All tensors are known to lie inside the
/// file. kNotFound, kIoError or kCorrupt; the message begins with the path.
Result<CheckedGguf> open_gguf(const std::string& path);

/// Checks the header of `file`, `size_bytes` long; leaves the position undefined.
/// The message names the key or tensor, but not the file.
Status scan_gguf(std::FILE* file, std::uint64_t size_bytes);

}  // namespace cqkv
