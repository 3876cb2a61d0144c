// Reading GGUF files, of models and of codebooks, without ggml: the header is checked whole and its
// keys and tensors are found by name; nothing of their meaning is known. Any file is safe to open:
// every count, size and place is compared with the file before it is used.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "cqkv/status.h"

#include "gguf/types.h"

namespace cqkv::gguf {

/// A key's value, where it stands in the file.
struct Value {
  ValueType type = ValueType::kUint8;  ///< Of the elements, if it is an array.
  bool is_array = false;
  std::uint64_t n = 1;      ///< Elements.
  std::uint64_t place = 0;  ///< Byte of the file at which the first element begins.
};

/// A tensor, where it stands in the file.
struct Tensor {
  std::string name;
  TensorType type = TensorType::kF32;
  std::array<std::int64_t, kMaxAxes> ne = {1, 1, 1,
                                           1};  ///< Elements of each axis, ne[0] contiguous.
  std::uint64_t place = 0;                      ///< Byte of the file at which its data begin.
  /// Of a type with a size here: of its data, all of them in the file. Else up to the next tensor
  /// or the end of the file, padding included.
  std::uint64_t n_bytes = 0;
};

/// An open file. Const after open; methods may run at once. The file must not change meanwhile.
class Reader {
 public:
  /// kNotFound, kIoError, kCorrupt or kResourceExhausted; the message begins with the path.
  static Result<Reader> open(const std::string& path);

  const std::string& path() const { return path_; }

  std::uint64_t size_bytes() const { return size_bytes_; }

  /// In the order of the file.
  const std::vector<std::string>& keys() const { return keys_; }

  const std::vector<Tensor>& tensors() const { return tensors_; }

  bool has(const std::string& key) const { return find(key) != nullptr; }

  /// Null if there is none.
  const Value* find(const std::string& key) const;
  const Tensor* find_tensor(const std::string& name) const;

  /// The value of a key; kCorrupt, naming the key, what it is and what it should be, if it is
  /// absent or of another type.
  Result<std::string> get_string(const std::string& key) const;
  Result<std::uint32_t> get_u32(const std::string& key) const;
  Result<std::uint64_t> get_u64(const std::string& key) const;
  Result<float> get_f32(const std::string& key) const;
  Result<std::vector<std::string>> get_strings(const std::string& key) const;
  Result<std::vector<std::uint32_t>> get_u32s(const std::string& key) const;
  Result<std::vector<std::uint64_t>> get_u64s(const std::string& key) const;

  /// "" if the key is absent; still an error if it has another type.
  Result<std::string> get_string_or_empty(const std::string& key) const;

  /// Numbers of any integer type, one or an array. kCorrupt for another type, or for numbers beyond
  /// 63 bits.
  Result<std::vector<std::int64_t>> read_integers(const std::string& key, const Value& value) const;

  /// Bytes [first, first + n) of the file.
  Status read(std::uint64_t first, void* out, std::size_t n_bytes) const;

  /// A kCorrupt status that begins with the path.
  Status bad(std::string_view what) const;

 private:
  struct FileCloser {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  class Scanner;

  Reader() = default;

  Status open_file();
  Result<const Value*> want(const std::string& key, ValueType type, bool is_array) const;

  template <typename T>
  Result<T> get_number(const std::string& key, ValueType type) const;
  template <typename T>
  Result<std::vector<T>> get_numbers(const std::string& key, ValueType type) const;
  Result<std::string> read_string(std::uint64_t& place) const;

  std::string path_;
  std::unique_ptr<std::FILE, FileCloser> file_;
  std::uint64_t size_bytes_ = 0;
  std::vector<std::string> keys_;
  std::unordered_map<std::string, Value> values_;
  std::vector<Tensor> tensors_;
  std::unordered_map<std::string, std::size_t> tensor_of_name_;
};

}  // namespace cqkv::gguf
