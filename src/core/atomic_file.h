// A file that appears under its name complete or not at all: written beside it under
// a temporary name, flushed to the disk, then renamed.
#pragma once

#include <cstddef>
#include <string>

#include "cqkv/status.h"

namespace cqkv {

/// Not copyable; one thread at a time. Unless commit() succeeded, destruction removes
/// the temporary file and leaves whatever was at the path.
class AtomicFile {
 public:
  /// `path` must be a regular file or not exist yet; checked by open().
  explicit AtomicFile(std::string path) : path_(std::move(path)) {}

  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  AtomicFile(AtomicFile&&) = delete;
  AtomicFile& operator=(AtomicFile&&) = delete;

  Status open();
  Status write(const void* data, std::size_t n_bytes);

  /// Flushes and renames. After an error the old file, if any, is still there.
  Status commit();

 private:
  Status failed(const char* doing, int error) const;

  std::string path_;
  std::string temporary_;
  int descriptor_ = -1;
};

}  // namespace cqkv
