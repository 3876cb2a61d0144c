// GgufFile on top of ggml's gguf reader and mmap; see gguf_file.h.
#include "calibration/gguf_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace cqkv {
namespace {

// Reads entry i (0 for scalars) of an integer of any width. False for other types and
// for unsigned values beyond int64.
bool read_integer(gguf_type type, const void* data, std::size_t i, std::int64_t& out) {
  const auto as = [&]<typename T>(T value) {
    std::memcpy(&value, static_cast<const char*>(data) + i * sizeof(T), sizeof(T));
    if (!std::in_range<std::int64_t>(value)) {
      return false;
    }
    out = std::int64_t{0} + value;  // NOLINT(bugprone-signed-char-misuse): 8-bit numbers
    return true;
  };
  switch (type) {
    case GGUF_TYPE_UINT8:
      return as(std::uint8_t{});
    case GGUF_TYPE_INT8:
      return as(std::int8_t{});
    case GGUF_TYPE_UINT16:
      return as(std::uint16_t{});
    case GGUF_TYPE_INT16:
      return as(std::int16_t{});
    case GGUF_TYPE_UINT32:
      return as(std::uint32_t{});
    case GGUF_TYPE_INT32:
      return as(std::int32_t{});
    case GGUF_TYPE_UINT64:
      return as(std::uint64_t{});
    case GGUF_TYPE_INT64:
      return as(std::int64_t{});
    default:
      return false;
  }
}

Status wrong_type(const std::string& key, gguf_type got, const char* want) {
  return corrupt(key + ": got type " + gguf_type_name(got) + ", want " + want);
}

Status absent(const std::string& key) {
  return corrupt(key + " is missing");
}

}  // namespace

void GgufFile::Unmap::operator()(const void* data) const {
  munmap(const_cast<void*>(data), n_bytes);  // NOLINT: munmap's signature
}

Result<GgufFile> GgufFile::open(const std::string& path) {
  GgufFile file;
  file.path_ = path;
  CQKV_RETURN_IF_ERROR(file.map());
  ggml_context* tensors = nullptr;
  file.gguf_.reset(gguf_init_from_file(path.c_str(), {true, &tensors}));
  file.tensors_.reset(tensors);
  if (file.gguf_ == nullptr) {
    return corrupt(path + ": not a GGUF file that ggml can read; its log says why");
  }
  auto n_parts = file.find_integer("split.count");
  if (!n_parts.ok()) {
    return n_parts.status();
  }
  if (n_parts->value_or(1) > 1) {
    return unsupported(path + ": one part of a model split into " + std::to_string(**n_parts) +
                       "; merge the parts with llama-gguf-split --merge");
  }
  CQKV_RETURN_IF_ERROR(file.check_tensors());
  return file;
}

Status GgufFile::map() {
  const int descriptor = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    const int error = errno;
    return {error == ENOENT ? StatusCode::kNotFound : StatusCode::kIoError,
            path_ + ": cannot open: " + std::strerror(error)};
  }

  struct stat info {};

  const bool is_file = fstat(descriptor, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0;
  const auto n_bytes = static_cast<std::size_t>(info.st_size);
  void* data = is_file ? mmap(nullptr, n_bytes, PROT_READ, MAP_SHARED, descriptor, 0) : MAP_FAILED;
  ::close(descriptor);
  if (data == MAP_FAILED) {
    return io_error(path_ + ": cannot map into memory; want a regular file that is not empty");
  }
  data_ = {data, Unmap{n_bytes}};
  return {};
}

Status GgufFile::check_tensors() const {
  const std::size_t n_bytes = data_.get_deleter().n_bytes;
  const std::size_t data_offset = gguf_get_data_offset(gguf_.get());
  for (std::int64_t i = 0; i < gguf_get_n_tensors(gguf_.get()); i++) {
    const std::size_t offset = data_offset + gguf_get_tensor_offset(gguf_.get(), i);
    const std::size_t size = gguf_get_tensor_size(gguf_.get(), i);
    if (offset > n_bytes || size > n_bytes - offset) {
      return corrupt(path_ + ": tensor " + gguf_get_tensor_name(gguf_.get(), i) + " ends at byte " +
                     std::to_string(offset + size) + ", the file at " + std::to_string(n_bytes) +
                     "; fetch the file again");
    }
  }
  return {};
}

Result<std::optional<std::int64_t>> GgufFile::find_integer(const std::string& key) const {
  const std::int64_t id = gguf_find_key(gguf_.get(), key.c_str());
  if (id < 0) {
    return std::optional<std::int64_t>();
  }
  const gguf_type type = gguf_get_kv_type(gguf_.get(), id);
  std::int64_t value = 0;
  if (type == GGUF_TYPE_ARRAY || type == GGUF_TYPE_STRING ||
      !read_integer(type, gguf_get_val_data(gguf_.get(), id), 0, value)) {
    return wrong_type(describe(key), type, "an integer");
  }
  return std::optional<std::int64_t>(value);
}

Result<std::optional<std::int64_t>> GgufFile::find_uniform_integer(const std::string& key) const {
  const std::int64_t id = gguf_find_key(gguf_.get(), key.c_str());
  if (id < 0 || gguf_get_kv_type(gguf_.get(), id) != GGUF_TYPE_ARRAY) {
    return find_integer(key);
  }
  const gguf_type type = gguf_get_arr_type(gguf_.get(), id);
  const std::size_t n = gguf_get_arr_n(gguf_.get(), id);
  std::int64_t first = 0;
  std::int64_t value = 0;
  for (std::size_t i = 0; i < n; i++) {
    if (type == GGUF_TYPE_STRING || type == GGUF_TYPE_ARRAY ||
        !read_integer(type, gguf_get_arr_data(gguf_.get(), id), i, value)) {
      return wrong_type(describe(key), type, "integers");
    }
    first = i == 0 ? value : first;
    if (value != first) {
      return unsupported(describe(key) + ": differs between layers (" + std::to_string(first) +
                         " and " + std::to_string(value) + "), want one value for all");
    }
  }
  return n == 0 ? std::optional<std::int64_t>() : std::optional<std::int64_t>(first);
}

Result<std::optional<double>> GgufFile::find_number(const std::string& key) const {
  const std::int64_t id = gguf_find_key(gguf_.get(), key.c_str());
  if (id < 0) {
    return std::optional<double>();
  }
  switch (const gguf_type type = gguf_get_kv_type(gguf_.get(), id)) {
    case GGUF_TYPE_FLOAT32:
      return std::optional<double>(gguf_get_val_f32(gguf_.get(), id));
    case GGUF_TYPE_FLOAT64:
      return std::optional<double>(gguf_get_val_f64(gguf_.get(), id));
    default:
      return wrong_type(describe(key), type, "a floating-point number");
  }
}

Result<std::optional<std::string>> GgufFile::find_string(const std::string& key) const {
  const std::int64_t id = gguf_find_key(gguf_.get(), key.c_str());
  if (id < 0) {
    return std::optional<std::string>();
  }
  const gguf_type type = gguf_get_kv_type(gguf_.get(), id);
  if (type != GGUF_TYPE_STRING) {
    return wrong_type(describe(key), type, "a string");
  }
  return std::optional<std::string>(gguf_get_val_str(gguf_.get(), id));
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
  return gguf_find_tensor(gguf_.get(), name.c_str()) >= 0;
}

Result<GgufTensor> GgufFile::tensor(const std::string& name) const {
  const std::int64_t id = gguf_find_tensor(gguf_.get(), name.c_str());
  if (id < 0) {
    return Status(StatusCode::kNotFound, path_ + ": tensor " + name + " is missing");
  }
  const ggml_tensor* info = ggml_get_tensor(tensors_.get(), name.c_str());
  GgufTensor tensor;
  tensor.name = name;
  tensor.type = info->type;
  tensor.n_columns = info->ne[0];
  tensor.n_rows = info->ne[1] * info->ne[2] * info->ne[3];
  tensor.n_bytes = gguf_get_tensor_size(gguf_.get(), id);
  tensor.data = static_cast<const char*>(data_.get()) + gguf_get_data_offset(gguf_.get()) +
                gguf_get_tensor_offset(gguf_.get(), id);
  return tensor;
}

}  // namespace cqkv
