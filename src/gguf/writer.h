// Writing GGUF files without ggml: keys and tensors in the order in which they are added, version
// 3, little-endian, data aligned to 32 bytes. Into memory and into a file; a file appears complete
// or not at all (core/atomic_file.h).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cqkv/status.h"

#include "gguf/types.h"

namespace cqkv::gguf {

/// Names must be unique; the caller sees to that. May throw std::bad_alloc.
class Writer {
 public:
  void set_string(std::string_view key, std::string_view value);
  void set_strings(std::string_view key, std::span<const std::string> values);
  void set_u32(std::string_view key, std::uint32_t value);
  void set_u64(std::string_view key, std::uint64_t value);
  void set_f32(std::string_view key, float value);
  void set_u32s(std::string_view key, std::span<const std::uint32_t> values);
  void set_u64s(std::string_view key, std::span<const std::uint64_t> values);

  /// `data` must live until the file is written: product(ne) elements.
  /// @param type  One with a size (element_bytes).
  void add_tensor(std::string_view name, TensorType type, std::span<const std::int64_t> ne,
                  const void* data);

  /// @return the errors of AtomicFile.
  Status write(const std::string& path) const;

 private:
  struct Content {
    const void* data = nullptr;
    std::size_t n_bytes = 0;
  };

  void begin_key(std::string_view key, ValueType type);
  void begin_array(std::string_view key, ValueType type, std::size_t n);

  std::vector<char> keys_;
  std::vector<char> infos_;  // of the tensors
  std::uint64_t n_keys_ = 0;
  std::vector<Content> contents_;
  std::uint64_t data_bytes_ = 0;  // padded
};

}  // namespace cqkv::gguf
