// See gguf_file.h.
#include "model_pass/gguf_file.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace cqkv {
namespace {

Status wrong_type(const std::string& key, const gguf::Value& got, const char* want) {
  return corrupt(key + ": got " + (got.is_array ? "an array of " : "type ") +
                 gguf::type_name(got.type) + ", want " + want);
}

Status absent(const std::string& key) {
  return corrupt(key + " is missing");
}

}  // namespace

void GgufFile::Unmap::operator()(const void* data) const {
  munmap(const_cast<void*>(data), n_bytes);  // NOLINT: munmap's signature
}

Result<GgufFile> GgufFile::open(const std::string& path) {
  auto header = gguf::Reader::open(path);
  if (!header.ok()) {
    return header.status();
  }
  GgufFile file(*std::move(header));
  CQKV_RETURN_IF_ERROR(file.map());
  auto n_parts = file.find_integer("split.count");
  if (!n_parts.ok()) {
    return n_parts.status();
  }
  if (n_parts->value_or(1) > 1) {
    return unsupported(path + ": one part of a model split into " + std::to_string(**n_parts) +
                       "; merge the parts with llama-gguf-split --merge");
  }
  return file;
}

Status GgufFile::map() {
  const int descriptor = ::open(path().c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    const int error = errno;
    return {error == ENOENT ? StatusCode::kNotFound : StatusCode::kIoError,
            path() + ": cannot open: " + std::strerror(error)};
  }

  struct stat info {};

  const bool is_file = fstat(descriptor, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0;
  const auto n_bytes = static_cast<std::size_t>(info.st_size);
  void* data = is_file ? mmap(nullptr, n_bytes, PROT_READ, MAP_SHARED, descriptor, 0) : MAP_FAILED;
  ::close(descriptor);
  if (data == MAP_FAILED) {
    return io_error(path() + ": cannot map into memory; want a regular file that is not empty");
  }
  data_ = {data, Unmap{n_bytes}};
  return {};
}

Result<std::optional<std::int64_t>> GgufFile::find_integer(const std::string& key) const {
  const gguf::Value* value = header_.find(key);
  if (value == nullptr) {
    return std::optional<std::int64_t>();
  }
  const auto numbers = header_.read_integers(key, *value);
  if (value->is_array || !numbers.ok()) {
    return wrong_type(describe(key), *value, "an integer");
  }
  return std::optional<std::int64_t>(numbers->front());
}

Result<std::optional<std::int64_t>> GgufFile::find_uniform_integer(const std::string& key) const {
  const gguf::Value* value = header_.find(key);
  if (value == nullptr || !value->is_array) {
    return find_integer(key);
  }
  const auto numbers = header_.read_integers(key, *value);
  if (!numbers.ok()) {
    return wrong_type(describe(key), *value, "integers");
  }
  for (const std::int64_t number : *numbers) {
    if (number != numbers->front()) {
      return unsupported(describe(key) + ": differs between layers (" +
                         std::to_string(numbers->front()) + " and " + std::to_string(number) +
                         "), want one value for all");
    }
  }
  return numbers->empty() ? std::optional<std::int64_t>() : std::optional(numbers->front());
}

Result<std::optional<double>> GgufFile::find_number(const std::string& key) const {
  const gguf::Value* value = header_.find(key);
  if (value == nullptr) {
    return std::optional<double>();
  }
  if (value->is_array ||
      (value->type != gguf::ValueType::kFloat32 && value->type != gguf::ValueType::kFloat64)) {
    return wrong_type(describe(key), *value, "a floating-point number");
  }
  if (value->type == gguf::ValueType::kFloat32) {
    const auto number = header_.get_f32(key);
    return number.ok() ? Result<std::optional<double>>(std::optional<double>(*number))
                       : number.status();
  }
  double number = 0;
  CQKV_RETURN_IF_ERROR(header_.read(value->place, &number, sizeof(number)));
  return std::optional<double>(number);
}

Result<std::optional<std::string>> GgufFile::find_string(const std::string& key) const {
  const gguf::Value* value = header_.find(key);
  if (value == nullptr) {
    return std::optional<std::string>();
  }
  if (value->is_array || value->type != gguf::ValueType::kString) {
    return wrong_type(describe(key), *value, "a string");
  }
  auto text = header_.get_string(key);
  return text.ok() ? Result<std::optional<std::string>>(std::optional(*std::move(text)))
                   : text.status();
}

Result<std::int64_t> GgufFile::integer(const std::string& key) const {
  auto value = find_integer(key);
  if (value.ok() && value->has_value()) {
    return **value;
  }
  return value.ok() ? absent(describe(key)) : value.status();
}

Result<double> GgufFile::number(const std::string& key) const {
  auto value = find_number(key);
  if (value.ok() && value->has_value()) {
    return **value;
  }
  return value.ok() ? absent(describe(key)) : value.status();
}

Result<std::string> GgufFile::string(const std::string& key) const {
  auto value = find_string(key);
  if (value.ok() && value->has_value()) {
    return **std::move(value);
  }
  return value.ok() ? absent(describe(key)) : value.status();
}

bool GgufFile::has_tensor(const std::string& name) const {
  return header_.find_tensor(name) != nullptr;
}

Result<GgufTensor> GgufFile::tensor(const std::string& name) const {
  const gguf::Tensor* found = header_.find_tensor(name);
  if (found == nullptr) {
    return Status(StatusCode::kNotFound, path() + ": tensor " + name + " is missing");
  }
  const auto type = static_cast<std::int32_t>(found->type);
  if (type < 0 || type >= GGML_TYPE_COUNT || ggml_blck_size(static_cast<ggml_type>(type)) <= 0 ||
      found->ne[0] % ggml_blck_size(static_cast<ggml_type>(type)) != 0) {
    return corrupt(path() + ": tensor " + name + " has rows of " + std::to_string(found->ne[0]) +
                   " elements of type " + std::to_string(type) + ", which ggml does not have");
  }
  GgufTensor tensor;
  tensor.name = name;
  tensor.type = static_cast<ggml_type>(type);
  tensor.n_columns = found->ne[0];
  tensor.n_rows = found->ne[1] * found->ne[2] * found->ne[3];
  tensor.n_bytes =
      ggml_row_size(tensor.type, tensor.n_columns) * static_cast<std::size_t>(tensor.n_rows);
  // The header knows only the sizes of some types; the file may have become shorter since.
  if (tensor.n_bytes > found->n_bytes ||
      found->place + tensor.n_bytes > data_.get_deleter().n_bytes) {
    return corrupt(path() + ": tensor " + name + " wants " + std::to_string(tensor.n_bytes) +
                   " bytes, the file has " + std::to_string(found->n_bytes) +
                   " for it; fetch the file again");
  }
  tensor.data = static_cast<const char*>(data_.get()) + found->place;
  return tensor;
}

}  // namespace cqkv
