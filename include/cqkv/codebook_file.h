// The codebook as a file: a GGUF that carries the centroids and where they come
// from. Keys, tensors and the version rule are in docs/codebook_format.md; the
// codebook in memory is cqkv/codebook.h. Nothing here knows a model or a device.
#pragma once

#include <cstdint>
#include <string>

#include "cqkv/codebook.h"
#include "cqkv/status.h"

namespace cqkv {

/// The version that write_codebook writes. Another major is refused on reading; a
/// higher minor may add keys and tensors, which are then ignored.
inline constexpr std::uint32_t kCodebookFileMajor = 1;
inline constexpr std::uint32_t kCodebookFileMinor = 5;

/// Writes `codebook` to `path` under a temporary name in the same folder, flushes it
/// to the disk and renames it. On failure no file is left behind and an older file at
/// `path` is untouched.
///
/// @return kInvalidArgument for a codebook that could not be read back (no layers,
///   too many, a fingerprint of another length) or a path that is not a file;
///   kResourceExhausted for a full disk, kIoError for anything else the system refused.
Status write_codebook(const Codebook& codebook, const std::string& path);

/// Reads what write_codebook wrote. Any file is safe to pass: every count, size and
/// type is checked against the file before it is used.
///
/// @return kNotFound, kIoError, kCorrupt, or kUnsupported for another major version
///   or method. The message begins with the path.
Result<Codebook> read_codebook(const std::string& path);

}  // namespace cqkv
