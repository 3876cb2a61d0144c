// Typed access to the keys of a GGUF header. ggml's own getters abort on a key of
// another type; these return a Status that names the key, what it is and what it
// should be.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cqkv/status.h"

struct gguf_context;

namespace cqkv {

class GgufFields {
 public:
  /// `context` must outlive this; `path` is for messages.
  GgufFields(const gguf_context* context, std::string path)
      : context_(context), path_(std::move(path)) {}

  bool has(const std::string& key) const;

  Result<std::string> get_string(const std::string& key) const;
  Result<std::uint32_t> get_u32(const std::string& key) const;
  Result<float> get_f32(const std::string& key) const;
  Result<std::uint64_t> get_u64(const std::string& key) const;
  Result<std::vector<std::string>> get_strings(const std::string& key) const;
  Result<std::vector<std::uint32_t>> get_u32s(const std::string& key) const;
  Result<std::vector<std::uint64_t>> get_u64s(const std::string& key) const;

  /// "" if the key is absent; still an error if it has another type.
  Result<std::string> get_string_or_empty(const std::string& key) const;

  /// A kCorrupt status that begins with the path.
  Status bad(std::string_view what) const;

 private:
  /// The index of a key of scalar type `type`, or of an array of it.
  Result<std::int64_t> find(const std::string& key, int type, bool is_array) const;

  template <typename T>
  Result<std::vector<T>> get_array(const std::string& key, int type) const;

  const gguf_context* context_;
  std::string path_;
};

}  // namespace cqkv
