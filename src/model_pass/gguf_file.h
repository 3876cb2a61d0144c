// A GGUF model file as the pass needs it: keys of any width as numbers, and tensors as ggml's
// types, mapped into memory. The header is read and checked by gguf/reader.h; that knows no ggml,
// without which a weight's type and size mean nothing, and reads into memory where models are
// mapped. No knowledge of architectures: model_file.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <ggml.h>

#include "cqkv/status.h"

#include "gguf/reader.h"

namespace cqkv {

/// A tensor inside the mapped file; valid while its GgufFile lives.
struct GgufTensor {
  std::string name;
  ggml_type type = GGML_TYPE_F32;
  std::int64_t n_columns = 0;  ///< ne[0], contiguous.
  std::int64_t n_rows = 0;     ///< ne[1] * ne[2] * ne[3].
  const void* data = nullptr;
  std::size_t n_bytes = 0;
};

/// Const after open; all methods may run at once. The file must not change meanwhile.
class GgufFile {
 public:
  /// @return kNotFound, kIoError, or kCorrupt if the header is damaged or a tensor lies beyond the
  ///   end of the file; kUnsupported for one part of a split model.
  static Result<GgufFile> open(const std::string& path);

  const std::string& path() const { return header_.path(); }

  /// The value of a key: nothing if absent, kCorrupt if of another type or out of
  /// range. Integers of all widths are accepted.
  Result<std::optional<std::int64_t>> find_integer(const std::string& key) const;
  Result<std::optional<double>> find_number(const std::string& key) const;
  Result<std::optional<std::string>> find_string(const std::string& key) const;

  /// The same, but an array of equal integers counts as that integer (per-layer
  /// values); kUnsupported if they differ.
  Result<std::optional<std::int64_t>> find_uniform_integer(const std::string& key) const;

  /// As find_*, but absence is kCorrupt.
  Result<std::int64_t> integer(const std::string& key) const;
  Result<double> number(const std::string& key) const;
  Result<std::string> string(const std::string& key) const;

  bool has_tensor(const std::string& name) const;

  /// @return kNotFound if there is no such tensor.
  Result<GgufTensor> tensor(const std::string& name) const;

 private:
  struct Unmap {
    std::size_t n_bytes;

    // Written out: unique_ptr needs the default before the class is complete.
    Unmap() : n_bytes(0) {}

    explicit Unmap(std::size_t size) : n_bytes(size) {}

    void operator()(const void* data) const;
  };

  explicit GgufFile(gguf::Reader header) : header_(std::move(header)) {}

  Status map();

  std::string describe(const std::string& key) const { return path() + ": key " + key; }

  gguf::Reader header_;
  std::unique_ptr<const void, Unmap> data_;
};

}  // namespace cqkv
