// See writer.h.
#include "gguf/writer.h"

#include "core/atomic_file.h"
#include "core/round_up.h"

namespace cqkv::gguf {
namespace {

void append(std::vector<char>& out, const void* data, std::size_t n_bytes) {
  const auto* bytes = static_cast<const char*>(data);
  out.insert(out.end(), bytes, bytes + n_bytes);
}

template <typename T>
void append_number(std::vector<char>& out, T value) {
  append(out, &value, sizeof(value));
}

void append_string(std::vector<char>& out, std::string_view text) {
  append_number(out, static_cast<std::uint64_t>(text.size()));
  append(out, text.data(), text.size());
}

std::uint64_t padded(std::uint64_t n_bytes) {
  return round_up(n_bytes, kDefaultAlignment);
}

}  // namespace

void Writer::begin_key(std::string_view key, ValueType type) {
  append_string(keys_, key);
  append_number(keys_, type);
  n_keys_++;
}

void Writer::begin_array(std::string_view key, ValueType type, std::size_t n) {
  begin_key(key, ValueType::kArray);
  append_number(keys_, type);
  append_number(keys_, static_cast<std::uint64_t>(n));
}

void Writer::set_string(std::string_view key, std::string_view value) {
  begin_key(key, ValueType::kString);
  append_string(keys_, value);
}

void Writer::set_strings(std::string_view key, std::span<const std::string> values) {
  begin_array(key, ValueType::kString, values.size());
  for (const std::string& value : values) {
    append_string(keys_, value);
  }
}

void Writer::set_u32(std::string_view key, std::uint32_t value) {
  begin_key(key, ValueType::kUint32);
  append_number(keys_, value);
}

void Writer::set_u64(std::string_view key, std::uint64_t value) {
  begin_key(key, ValueType::kUint64);
  append_number(keys_, value);
}

void Writer::set_f32(std::string_view key, float value) {
  begin_key(key, ValueType::kFloat32);
  append_number(keys_, value);
}

void Writer::set_u32s(std::string_view key, std::span<const std::uint32_t> values) {
  begin_array(key, ValueType::kUint32, values.size());
  append(keys_, values.data(), values.size_bytes());
}

void Writer::set_u64s(std::string_view key, std::span<const std::uint64_t> values) {
  begin_array(key, ValueType::kUint64, values.size());
  append(keys_, values.data(), values.size_bytes());
}

void Writer::add_tensor(std::string_view name, TensorType type, std::span<const std::int64_t> ne,
                        const void* data) {
  while (ne.size() > 1 && ne.back() == 1) {
    ne = ne.first(ne.size() - 1);  // as ggml writes it
  }
  append_string(infos_, name);
  append_number(infos_, static_cast<std::uint32_t>(ne.size()));
  std::uint64_t n_bytes = element_bytes(type);
  for (const std::int64_t n : ne) {
    append_number(infos_, n);
    n_bytes *= static_cast<std::uint64_t>(n);
  }
  append_number(infos_, type);
  append_number(infos_, data_bytes_);
  contents_.push_back({data, n_bytes});
  data_bytes_ += padded(n_bytes);
}

Status Writer::write(const std::string& path) const {
  std::vector<char> header(kMagic, kMagic + sizeof(kMagic));
  append_number(header, kVersion);
  append_number(header, static_cast<std::uint64_t>(contents_.size()));
  append_number(header, n_keys_);
  header.insert(header.end(), keys_.begin(), keys_.end());
  header.insert(header.end(), infos_.begin(), infos_.end());
  header.resize(padded(header.size()));
  AtomicFile file(path);
  CQKV_RETURN_IF_ERROR(file.open());
  CQKV_RETURN_IF_ERROR(file.write(header.data(), header.size()));
  const std::vector<char> zeros(kDefaultAlignment);
  for (const Content& content : contents_) {
    CQKV_RETURN_IF_ERROR(file.write(content.data, content.n_bytes));
    CQKV_RETURN_IF_ERROR(file.write(zeros.data(), padded(content.n_bytes) - content.n_bytes));
  }
  return file.commit();
}

}  // namespace cqkv::gguf
