// See gguf_scan.h. The checks mirror ggml/src/gguf.cpp of the pinned version: what it
// accepts and we do not is only what no writer produces (names of more than 64 KiB).
#include "codebook_file/gguf_scan.h"

#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <new>
#include <unordered_set>
#include <utility>

#include <ggml.h>
#include <gguf.h>
#include <sys/stat.h>

namespace cqkv {
namespace {

constexpr std::uint64_t kMaxNameBytes = 65535;

// ggml refuses longer ones.
constexpr std::uint64_t kMaxArrayElements = 1ULL << 30U;

std::uint64_t type_size_bytes(std::int32_t type) {
  constexpr std::array<std::uint8_t, GGUF_TYPE_COUNT> kSizes = {1, 1, 2, 2, 4, 4, 4,
                                                                1, 0, 0, 8, 8, 8};
  return type >= 0 && type < GGUF_TYPE_COUNT ? kSizes[static_cast<std::size_t>(type)] : 0;
}

class Scanner {
 public:
  Scanner(std::FILE* file, std::uint64_t size_bytes) : file_(file), size_(size_bytes) {}

  Status run();

 private:
  std::uint64_t remaining() const { return size_ - position_; }

  Status ends_early() const {
    return corrupt("the file ends after " + std::to_string(size_) + " bytes inside " + where_ +
                   "; it is truncated");
  }

  Status bad(const std::string& what) const { return corrupt(where_ + ": " + what); }

  Status read_bytes(void* out, std::uint64_t n_bytes) {
    if (n_bytes > remaining()) {
      return ends_early();
    }
    if (std::fread(out, 1, n_bytes, file_) != n_bytes) {
      return io_error("cannot read " + where_ + ": " + std::strerror(errno));
    }
    position_ += n_bytes;
    return {};
  }

  template <typename T>
  Status read(T& out) {
    return read_bytes(&out, sizeof(T));
  }

  Status skip(std::uint64_t n_bytes) {
    if (n_bytes > remaining()) {
      return ends_early();
    }
    position_ += n_bytes;
    if (fseeko(file_, static_cast<off_t>(position_), SEEK_SET) != 0) {
      return io_error("cannot read " + where_ + ": " + std::strerror(errno));
    }
    return {};
  }

  Status read_name(std::uint64_t max_bytes, std::string& out);
  Status skip_string();
  Status skip_strings(std::uint64_t n);
  Status scan_key(std::uint64_t index);
  Status scan_alignment(std::int32_t type);
  Status scan_array();
  Status scan_tensor(std::uint64_t index);
  Status scan_shape(std::array<std::int64_t, GGML_MAX_DIMS>& ne);
  Status add_tensor_bytes(std::int32_t type, const std::array<std::int64_t, GGML_MAX_DIMS>& ne);
  Status check_data();

  std::FILE* file_;
  std::uint64_t size_;
  std::uint64_t position_ = 0;
  std::string where_ = "the header";
  std::uint64_t alignment_ = GGUF_DEFAULT_ALIGNMENT;
  std::uint64_t data_bytes_ = 0;      // padded, of all tensors so far
  std::uint64_t data_end_bytes_ = 0;  // unpadded end of the last tensor
  std::unordered_set<std::string> keys_;
  std::unordered_set<std::string> tensors_;
};

Status Scanner::read_name(std::uint64_t max_bytes, std::string& out) {
  std::uint64_t n_bytes = 0;
  CQKV_RETURN_IF_ERROR(read(n_bytes));
  if (n_bytes > max_bytes) {
    return bad("its name has " + std::to_string(n_bytes) + " bytes, want at most " +
               std::to_string(max_bytes));
  }
  if (n_bytes > remaining()) {
    return ends_early();
  }
  out.resize(n_bytes);
  return n_bytes == 0 ? Status() : read_bytes(out.data(), n_bytes);
}

Status Scanner::skip_string() {
  std::uint64_t n_bytes = 0;
  CQKV_RETURN_IF_ERROR(read(n_bytes));
  return skip(n_bytes);
}

Status Scanner::skip_strings(std::uint64_t n) {
  if (n > remaining() / sizeof(std::uint64_t)) {
    return ends_early();
  }
  for (std::uint64_t i = 0; i < n; i++) {
    CQKV_RETURN_IF_ERROR(skip_string());
  }
  return {};
}

Status Scanner::scan_array() {
  std::int32_t type = -1;
  std::uint64_t n = 0;
  CQKV_RETURN_IF_ERROR(read(type));
  CQKV_RETURN_IF_ERROR(read(n));
  if (n > kMaxArrayElements) {
    return bad("array of " + std::to_string(n) + " elements, want at most " +
               std::to_string(kMaxArrayElements));
  }
  if (type == GGUF_TYPE_STRING) {
    return skip_strings(n);
  }
  const std::uint64_t size = type_size_bytes(type);
  if (size == 0) {
    return bad("array of elements of type " + std::to_string(type) + ", which GGUF does not have");
  }
  return skip(n * size);  // at most 2^33
}

Status Scanner::scan_alignment(std::int32_t type) {
  if (type != GGUF_TYPE_UINT32) {
    return bad("type " + std::to_string(type) + ", want a 32-bit unsigned number");
  }
  std::uint32_t alignment = 0;
  CQKV_RETURN_IF_ERROR(read(alignment));
  if (!std::has_single_bit(alignment)) {
    return bad("got " + std::to_string(alignment) + ", want a power of two");
  }
  alignment_ = alignment;
  return {};
}

Status Scanner::scan_key(std::uint64_t index) {
  where_ = "key " + std::to_string(index);
  std::string name;
  CQKV_RETURN_IF_ERROR(read_name(kMaxNameBytes, name));
  if (name.empty() || name.find('\0') != std::string::npos) {
    return bad("its name is empty or holds a zero byte");
  }
  where_ += " ('" + name + "')";
  if (!keys_.insert(name).second) {
    return bad("the key appears twice");
  }
  std::int32_t type = -1;
  CQKV_RETURN_IF_ERROR(read(type));
  if (name == GGUF_KEY_GENERAL_ALIGNMENT) {
    return scan_alignment(type);
  }
  if (type == GGUF_TYPE_STRING) {
    return skip_string();
  }
  if (type == GGUF_TYPE_ARRAY) {
    return scan_array();
  }
  const std::uint64_t size = type_size_bytes(type);
  if (size == 0) {
    return bad("type " + std::to_string(type) + ", which GGUF does not have");
  }
  return skip(size);
}

Status Scanner::scan_shape(std::array<std::int64_t, GGML_MAX_DIMS>& ne) {
  std::uint32_t n_dims = 0;
  CQKV_RETURN_IF_ERROR(read(n_dims));
  if (n_dims > GGML_MAX_DIMS) {
    return bad(std::to_string(n_dims) + " axes, want at most " + std::to_string(GGML_MAX_DIMS));
  }
  ne.fill(1);
  std::int64_t n_elements = 1;
  for (std::uint32_t i = 0; i < n_dims; i++) {
    CQKV_RETURN_IF_ERROR(read(ne[i]));
    // 2^48 elements are more than any file holds and leave room for all products below.
    if (ne[i] <= 0 || ne[i] > (std::int64_t{1} << 48) / n_elements) {
      return bad("axis " + std::to_string(i) + " has " + std::to_string(ne[i]) +
                 " elements, which is not possible");
    }
    n_elements *= ne[i];
  }
  return {};
}

Status Scanner::add_tensor_bytes(std::int32_t type,
                                 const std::array<std::int64_t, GGML_MAX_DIMS>& ne) {
  if (type < 0 || type >= GGML_TYPE_COUNT) {
    return bad("tensor type " + std::to_string(type) + ", want one below " +
               std::to_string(GGML_TYPE_COUNT));
  }
  const auto ggml_kind = static_cast<ggml_type>(type);
  const std::int64_t block = ggml_blck_size(ggml_kind);
  if (block <= 0 || ggml_type_size(ggml_kind) == 0 || ne[0] % block != 0) {
    return bad("rows of " + std::to_string(ne[0]) + " elements cannot have tensor type " +
               std::to_string(type));
  }
  const auto n_blocks = static_cast<std::uint64_t>(ne[0] / block * ne[1] * ne[2] * ne[3]);
  const std::uint64_t n_bytes = n_blocks * ggml_type_size(ggml_kind);  // < 2^48 * 2^10
  data_end_bytes_ = data_bytes_ + n_bytes;
  if (data_end_bytes_ > size_) {
    return bad("the data up to its end take " + std::to_string(data_end_bytes_) +
               " bytes, the file has " + std::to_string(size_) + "; it is truncated or damaged");
  }
  data_bytes_ = (data_end_bytes_ + alignment_ - 1) & ~(alignment_ - 1);
  return {};
}

Status Scanner::scan_tensor(std::uint64_t index) {
  where_ = "tensor " + std::to_string(index);
  std::string name;
  CQKV_RETURN_IF_ERROR(read_name(GGML_MAX_NAME - 1, name));
  where_ += " ('" + name + "')";
  if (!tensors_.insert(name).second) {
    return bad("the name appears twice");
  }
  std::array<std::int64_t, GGML_MAX_DIMS> ne{};
  CQKV_RETURN_IF_ERROR(scan_shape(ne));
  std::int32_t type = -1;
  CQKV_RETURN_IF_ERROR(read(type));
  std::uint64_t offset = 0;
  CQKV_RETURN_IF_ERROR(read(offset));
  if (offset != data_bytes_) {
    return bad("its data begin at " + std::to_string(offset) + ", want " +
               std::to_string(data_bytes_));
  }
  return add_tensor_bytes(type, ne);
}

Status Scanner::check_data() {
  where_ = "the tensor data";
  const std::uint64_t data_begin = (position_ + alignment_ - 1) & ~(alignment_ - 1);
  if (data_begin + data_end_bytes_ > size_) {
    return corrupt("the file has " + std::to_string(size_) + " bytes, want at least " +
                   std::to_string(data_begin + data_end_bytes_) + "; it is truncated");
  }
  return {};
}

Status Scanner::run() {
  std::array<char, 4> magic{};
  CQKV_RETURN_IF_ERROR(read(magic));
  if (std::memcmp(magic.data(), GGUF_MAGIC, magic.size()) != 0) {
    return corrupt("not a GGUF file: it does not begin with 'GGUF'");
  }
  std::uint32_t version = 0;
  std::int64_t n_tensors = 0;
  std::int64_t n_keys = 0;
  CQKV_RETURN_IF_ERROR(read(version));
  if (version < 2 || version > GGUF_VERSION) {
    return corrupt("GGUF version " + std::to_string(version) + ", want 2 or " +
                   std::to_string(GGUF_VERSION));
  }
  CQKV_RETURN_IF_ERROR(read(n_tensors));
  CQKV_RETURN_IF_ERROR(read(n_keys));
  if (n_tensors < 0 || n_keys < 0) {
    return corrupt("the header counts " + std::to_string(n_tensors) + " tensors and " +
                   std::to_string(n_keys) + " keys, want none below zero");
  }
  for (std::int64_t i = 0; i < n_keys; i++) {
    CQKV_RETURN_IF_ERROR(scan_key(static_cast<std::uint64_t>(i)));
  }
  for (std::int64_t i = 0; i < n_tensors; i++) {
    CQKV_RETURN_IF_ERROR(scan_tensor(static_cast<std::uint64_t>(i)));
  }
  return n_tensors == 0 ? Status() : check_data();
}

Status with_path(const std::string& path, const Status& status) {
  return {status.code(), path + ": " + status.message()};
}

Result<CheckedGguf> open_checked(const std::string& path) {
  CheckedGguf result;
  struct stat info = {};
  if (stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {
    return corrupt(path + ": " + (S_ISDIR(info.st_mode) ? "is a folder" : "is not a regular file") +
                   ", want a GGUF file");
  }
  result.file.reset(std::fopen(path.c_str(), "rb"));
  if (result.file == nullptr) {
    const int error = errno;
    const auto code = error == ENOENT ? StatusCode::kNotFound : StatusCode::kIoError;
    return Status(code, path + ": cannot open it: " + std::strerror(error));
  }
  if (fstat(fileno(result.file.get()), &info) != 0 || !S_ISREG(info.st_mode)) {
    return io_error(path + ": is not a regular file");
  }
  result.size_bytes = static_cast<std::uint64_t>(info.st_size);
  const Status scanned = scan_gguf(result.file.get(), result.size_bytes);
  if (!scanned.ok()) {
    return with_path(path, scanned);
  }
  std::rewind(result.file.get());
  result.header.reset(
      gguf_init_from_file_ptr(result.file.get(), {/*no_alloc=*/true, /*ctx=*/nullptr}));
  if (result.header == nullptr) {
    // The header was checked; what is left is memory, of which ggml only says "no".
    return Status(StatusCode::kResourceExhausted,
                  path + ": ggml cannot read its header, probably for want of memory");
  }
  return result;
}

}  // namespace

void GgufFreer::operator()(gguf_context* context) const {
  gguf_free(context);
}

Status scan_gguf(std::FILE* file, std::uint64_t size_bytes) {
  std::rewind(file);
  return Scanner(file, size_bytes).run();
}

Result<CheckedGguf> open_gguf(const std::string& path) {
  try {
    return open_checked(path);
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::kResourceExhausted, path + ": not enough memory for its header");
  }
}

}  // namespace cqkv
