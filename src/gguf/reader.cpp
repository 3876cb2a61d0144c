// See reader.h. The scanner goes over the header once, through the C library's buffer; later reads
// are positioned, so that they may run at once.
#include "gguf/reader.h"

#include <bit>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

#include <sys/stat.h>
#include <unistd.h>

namespace cqkv::gguf {
namespace {

constexpr std::uint64_t kMaxKeyBytes = 65535;

// ggml refuses longer ones.
constexpr std::uint64_t kMaxArrayElements = 1ULL << 30U;

// More elements than any file holds, and room for all products below.
constexpr std::int64_t kMaxElements = std::int64_t{1} << 48;

std::string type_text(ValueType type, bool is_array) {
  const std::string name = type_name(type);
  return is_array ? "an array of " + name : name;
}

template <typename T>
bool as_integers(const std::vector<std::uint8_t>& bytes, std::vector<std::int64_t>& out) {
  for (std::size_t i = 0; i < out.size(); i++) {
    T value{};
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    if (!std::in_range<std::int64_t>(value)) {
      return false;
    }
    out[i] = std::int64_t{0} + value;  // NOLINT(bugprone-signed-char-misuse): 8-bit numbers
  }
  return true;
}

// False for other types and for unsigned values beyond int64.
bool to_integers(ValueType type, const std::vector<std::uint8_t>& bytes,
                 std::vector<std::int64_t>& out) {
  switch (type) {
    case ValueType::kUint8:
      return as_integers<std::uint8_t>(bytes, out);
    case ValueType::kInt8:
      return as_integers<std::int8_t>(bytes, out);
    case ValueType::kUint16:
      return as_integers<std::uint16_t>(bytes, out);
    case ValueType::kInt16:
      return as_integers<std::int16_t>(bytes, out);
    case ValueType::kUint32:
      return as_integers<std::uint32_t>(bytes, out);
    case ValueType::kInt32:
      return as_integers<std::int32_t>(bytes, out);
    case ValueType::kUint64:
      return as_integers<std::uint64_t>(bytes, out);
    case ValueType::kInt64:
      return as_integers<std::int64_t>(bytes, out);
    default:
      return false;
  }
}

}  // namespace

// ---------------------------------------------------------------- the header

class Reader::Scanner {
 public:
  explicit Scanner(Reader& reader) : reader_(reader), size_(reader.size_bytes_) {}

  Status run();

 private:
  std::uint64_t remaining() const { return size_ - position_; }

  Status ends_early() const {
    return corrupt("the file ends after " + std::to_string(size_) + " bytes inside " + where_ +
                   "; it is truncated");
  }

  Status bad(const std::string& what) const { return corrupt(where_ + ": " + what); }

  Status cannot_read() const {
    return io_error("cannot read " + where_ + ": " + std::strerror(errno));
  }

  Status read_bytes(void* out, std::uint64_t n_bytes) {
    if (n_bytes > remaining()) {
      return ends_early();
    }
    if (std::fread(out, 1, n_bytes, reader_.file_.get()) != n_bytes) {
      return cannot_read();
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
    return fseeko(reader_.file_.get(), static_cast<off_t>(position_), SEEK_SET) == 0
               ? Status()
               : cannot_read();
  }

  Status read_name(std::uint64_t max_bytes, std::string& out);
  Status skip_strings(std::uint64_t n);
  Status scan_key(std::uint64_t index);
  Status scan_alignment(const Value& value);
  Status scan_value(Value& value);
  Status scan_tensor(std::uint64_t index);
  Status scan_shape(Tensor& tensor);
  Status place_tensors();
  Status place_tensor(Tensor& tensor, std::uint64_t begin, std::uint64_t end) const;

  Reader& reader_;
  std::uint64_t size_;
  std::uint64_t position_ = 0;
  std::string where_ = "the header";
  std::uint64_t alignment_ = kDefaultAlignment;
};

Status Reader::Scanner::read_name(std::uint64_t max_bytes, std::string& out) {
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

Status Reader::Scanner::skip_strings(std::uint64_t n) {
  if (n > remaining() / sizeof(std::uint64_t)) {
    return ends_early();
  }
  for (std::uint64_t i = 0; i < n; i++) {
    std::uint64_t n_bytes = 0;
    CQKV_RETURN_IF_ERROR(read(n_bytes));
    CQKV_RETURN_IF_ERROR(skip(n_bytes));
  }
  return {};
}

Status Reader::Scanner::scan_value(Value& value) {
  CQKV_RETURN_IF_ERROR(read(value.type));
  if (value.type == ValueType::kArray) {
    value.is_array = true;
    CQKV_RETURN_IF_ERROR(read(value.type));
    CQKV_RETURN_IF_ERROR(read(value.n));
    if (value.n > kMaxArrayElements) {
      return bad("array of " + std::to_string(value.n) + " elements, want at most " +
                 std::to_string(kMaxArrayElements));
    }
  }
  value.place = position_;
  if (value.type == ValueType::kString) {
    return skip_strings(value.n);
  }
  const std::uint64_t n_bytes = type_bytes(value.type);
  if (n_bytes == 0) {
    return bad((value.is_array ? "array of elements of type " : "type ") +
               std::to_string(static_cast<std::int32_t>(value.type)) +
               ", which GGUF does not have");
  }
  return skip(value.n * n_bytes);  // at most 2^33
}

Status Reader::Scanner::scan_alignment(const Value& value) {
  if (value.type != ValueType::kUint32 || value.is_array) {
    return bad("is " + type_text(value.type, value.is_array) + ", want u32");
  }
  std::uint32_t alignment = 0;
  CQKV_RETURN_IF_ERROR(reader_.read(value.place, &alignment, sizeof(alignment)));
  if (!std::has_single_bit(alignment)) {
    return bad("got " + std::to_string(alignment) + ", want a power of two");
  }
  alignment_ = alignment;
  return {};
}

Status Reader::Scanner::scan_key(std::uint64_t index) {
  where_ = "key " + std::to_string(index);
  std::string name;
  CQKV_RETURN_IF_ERROR(read_name(kMaxKeyBytes, name));
  if (name.empty() || name.find('\0') != std::string::npos) {
    return bad("its name is empty or holds a zero byte");
  }
  where_ += " ('" + name + "')";
  Value value;
  CQKV_RETURN_IF_ERROR(scan_value(value));
  if (!reader_.values_.emplace(name, value).second) {
    return bad("the key appears twice");
  }
  reader_.keys_.push_back(name);
  return name == kAlignmentKey ? scan_alignment(value) : Status();
}

Status Reader::Scanner::scan_shape(Tensor& tensor) {
  std::uint32_t n_axes = 0;
  CQKV_RETURN_IF_ERROR(read(n_axes));
  if (n_axes > static_cast<std::uint32_t>(kMaxAxes)) {
    return bad(std::to_string(n_axes) + " axes, want at most " + std::to_string(kMaxAxes));
  }
  std::int64_t n_elements = 1;
  for (std::uint32_t i = 0; i < n_axes; i++) {
    CQKV_RETURN_IF_ERROR(read(tensor.ne[i]));
    if (tensor.ne[i] <= 0 || tensor.ne[i] > kMaxElements / n_elements) {
      return bad("axis " + std::to_string(i) + " has " + std::to_string(tensor.ne[i]) +
                 " elements, which is not possible");
    }
    n_elements *= tensor.ne[i];
  }
  return {};
}

// Its place counts from the end of the header, which is not known yet.
Status Reader::Scanner::scan_tensor(std::uint64_t index) {
  where_ = "tensor " + std::to_string(index);
  Tensor tensor;
  CQKV_RETURN_IF_ERROR(read_name(kMaxTensorName, tensor.name));
  where_ += " ('" + tensor.name + "')";
  CQKV_RETURN_IF_ERROR(scan_shape(tensor));
  CQKV_RETURN_IF_ERROR(read(tensor.type));
  CQKV_RETURN_IF_ERROR(read(tensor.place));
  if (!reader_.tensor_of_name_.emplace(tensor.name, reader_.tensors_.size()).second) {
    return bad("the name appears twice");
  }
  reader_.tensors_.push_back(std::move(tensor));
  return {};
}

Status Reader::Scanner::place_tensor(Tensor& tensor, std::uint64_t begin, std::uint64_t end) const {
  if (end < begin || end > size_) {
    return corrupt("tensor '" + tensor.name + "' has its data from byte " + std::to_string(begin) +
                   " to " + std::to_string(end) + ", the file has " + std::to_string(size_) +
                   "; it is truncated or damaged");
  }
  tensor.place = begin;
  tensor.n_bytes = end - begin;
  const std::uint64_t element = element_bytes(tensor.type);
  if (element == 0) {
    return {};
  }
  const std::uint64_t n_bytes =
      static_cast<std::uint64_t>(tensor.ne[0] * tensor.ne[1] * tensor.ne[2] * tensor.ne[3]) *
      element;
  if (n_bytes > tensor.n_bytes) {
    return corrupt("tensor '" + tensor.name + "' has room for " + std::to_string(tensor.n_bytes) +
                   " bytes in the file, want " + std::to_string(n_bytes) +
                   "; the file is truncated or damaged");
  }
  tensor.n_bytes = n_bytes;
  return {};
}

// Data lie in the order of the tensors, each up to the next one.
Status Reader::Scanner::place_tensors() {
  const std::uint64_t data_begin = (position_ + alignment_ - 1) & ~(alignment_ - 1);
  std::vector<Tensor>& tensors = reader_.tensors_;
  for (std::size_t i = 0; i < tensors.size(); i++) {
    const std::uint64_t offset = tensors[i].place;
    if (offset % alignment_ != 0 || offset > size_ || (i == 0 && offset != 0)) {
      return corrupt("tensor '" + tensors[i].name + "': its data begin at " +
                     std::to_string(offset) + ", want " +
                     (i == 0 ? std::string("0") : "a multiple of " + std::to_string(alignment_)) +
                     " inside the file");
    }
  }
  for (std::size_t i = 0; i < tensors.size(); i++) {
    const bool last = i + 1 == tensors.size();
    CQKV_RETURN_IF_ERROR(place_tensor(tensors[i], data_begin + tensors[i].place,
                                      last ? size_ : data_begin + tensors[i + 1].place));
  }
  return {};
}

Status Reader::Scanner::run() {
  std::array<char, sizeof(kMagic)> magic{};
  CQKV_RETURN_IF_ERROR(read(magic));
  if (std::memcmp(magic.data(), kMagic, magic.size()) != 0) {
    return corrupt("not a GGUF file: it does not begin with 'GGUF'");
  }
  std::uint32_t version = 0;
  std::int64_t n_tensors = 0;
  std::int64_t n_keys = 0;
  CQKV_RETURN_IF_ERROR(read(version));
  if (version < 2 || version > kVersion) {
    return corrupt("GGUF version " + std::to_string(version) + ", want 2 or " +
                   std::to_string(kVersion));
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
  return place_tensors();
}

Status Reader::open_file() {
  struct stat info = {};
  if (stat(path_.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {
    return corrupt(path_ + ": " +
                   (S_ISDIR(info.st_mode) ? "is a folder" : "is not a regular file") +
                   ", want a GGUF file");
  }
  file_.reset(std::fopen(path_.c_str(), "rb"));
  if (file_ == nullptr) {
    const int error = errno;
    const auto code = error == ENOENT ? StatusCode::kNotFound : StatusCode::kIoError;
    return {code, path_ + ": cannot open it: " + std::strerror(error)};
  }
  if (fstat(fileno(file_.get()), &info) != 0 || !S_ISREG(info.st_mode)) {
    return io_error(path_ + ": is not a regular file");
  }
  size_bytes_ = static_cast<std::uint64_t>(info.st_size);
  return {};
}

Result<Reader> Reader::open(const std::string& path) {
  try {
    Reader reader;
    reader.path_ = path;
    CQKV_RETURN_IF_ERROR(reader.open_file());
    const Status scanned = Scanner(reader).run();
    if (!scanned.ok()) {
      return Status(scanned.code(), path + ": " + scanned.message());
    }
    return reader;
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::kResourceExhausted, path + ": not enough memory for its header");
  }
}

// ---------------------------------------------------------------- values

const Value* Reader::find(const std::string& key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

const Tensor* Reader::find_tensor(const std::string& name) const {
  const auto found = tensor_of_name_.find(name);
  return found == tensor_of_name_.end() ? nullptr : &tensors_[found->second];
}

Status Reader::bad(std::string_view what) const {
  return corrupt(path_ + ": " + std::string(what));
}

Status Reader::read(std::uint64_t first, void* out, std::size_t n_bytes) const {
  auto* to = static_cast<char*>(out);
  for (std::size_t done = 0; done < n_bytes;) {
    const ssize_t n =
        pread(fileno(file_.get()), to + done, n_bytes - done, static_cast<off_t>(first + done));
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n <= 0) {
      return io_error(path_ + ": cannot read " + std::to_string(n_bytes) + " bytes at " +
                      std::to_string(first) + ": " +
                      (n < 0 ? std::strerror(errno) : "the file has become shorter"));
    }
    done += static_cast<std::size_t>(n);
  }
  return {};
}

Result<const Value*> Reader::want(const std::string& key, ValueType type, bool is_array) const {
  const Value* value = find(key);
  if (value == nullptr) {
    return bad("has no key '" + key + "'");
  }
  if (value->is_array != is_array || value->type != type) {
    return bad("key '" + key + "' is " + type_text(value->type, value->is_array) + ", want " +
               type_text(type, is_array));
  }
  return value;
}

template <typename T>
Result<T> Reader::get_number(const std::string& key, ValueType type) const {
  const auto value = want(key, type, false);
  if (!value.ok()) {
    return value.status();
  }
  T number{};
  CQKV_RETURN_IF_ERROR(read((*value)->place, &number, sizeof(number)));
  return number;
}

template <typename T>
Result<std::vector<T>> Reader::get_numbers(const std::string& key, ValueType type) const {
  const auto value = want(key, type, true);
  if (!value.ok()) {
    return value.status();
  }
  std::vector<T> numbers((*value)->n);
  CQKV_RETURN_IF_ERROR(read((*value)->place, numbers.data(), numbers.size() * sizeof(T)));
  return numbers;
}

// The scan has shown that the string lies inside the file. Moves `place` behind it.
Result<std::string> Reader::read_string(std::uint64_t& place) const {
  std::uint64_t n_bytes = 0;
  CQKV_RETURN_IF_ERROR(read(place, &n_bytes, sizeof(n_bytes)));
  if (n_bytes > size_bytes_ - place) {
    return io_error(path_ + ": has changed while it was read");
  }
  std::string text(n_bytes, '\0');
  CQKV_RETURN_IF_ERROR(read(place + sizeof(n_bytes), text.data(), n_bytes));
  place += sizeof(n_bytes) + n_bytes;
  return text;
}

Result<std::string> Reader::get_string(const std::string& key) const {
  const auto value = want(key, ValueType::kString, false);
  if (!value.ok()) {
    return value.status();
  }
  std::uint64_t place = (*value)->place;
  return read_string(place);
}

Result<std::string> Reader::get_string_or_empty(const std::string& key) const {
  return has(key) ? get_string(key) : Result<std::string>(std::string());
}

Result<std::uint32_t> Reader::get_u32(const std::string& key) const {
  return get_number<std::uint32_t>(key, ValueType::kUint32);
}

Result<std::uint64_t> Reader::get_u64(const std::string& key) const {
  return get_number<std::uint64_t>(key, ValueType::kUint64);
}

Result<float> Reader::get_f32(const std::string& key) const {
  return get_number<float>(key, ValueType::kFloat32);
}

Result<std::vector<std::string>> Reader::get_strings(const std::string& key) const {
  const auto value = want(key, ValueType::kString, true);
  if (!value.ok()) {
    return value.status();
  }
  std::vector<std::string> strings;
  std::uint64_t place = (*value)->place;
  for (std::uint64_t i = 0; i < (*value)->n; i++) {
    auto text = read_string(place);
    if (!text.ok()) {
      return text.status();
    }
    strings.push_back(*std::move(text));
  }
  return strings;
}

Result<std::vector<std::uint32_t>> Reader::get_u32s(const std::string& key) const {
  return get_numbers<std::uint32_t>(key, ValueType::kUint32);
}

Result<std::vector<std::uint64_t>> Reader::get_u64s(const std::string& key) const {
  return get_numbers<std::uint64_t>(key, ValueType::kUint64);
}

Result<std::vector<std::int64_t>> Reader::read_integers(const std::string& key,
                                                        const Value& value) const {
  // Strings have no number of bytes, and may be many.
  const std::size_t n = type_bytes(value.type) == 0 ? 0 : value.n;
  std::vector<std::uint8_t> bytes(n * type_bytes(value.type));
  CQKV_RETURN_IF_ERROR(read(value.place, bytes.data(), bytes.size()));
  std::vector<std::int64_t> numbers(n);
  if (!to_integers(value.type, bytes, numbers)) {
    return bad("key '" + key + "' is " + type_text(value.type, value.is_array) +
               ", want integers of 63 bits at most");
  }
  return numbers;
}

}  // namespace cqkv::gguf
