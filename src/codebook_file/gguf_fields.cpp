// See gguf_fields.h.
#include "codebook_file/gguf_fields.h"

#include <algorithm>
#include <cstring>

#include <gguf.h>

namespace cqkv {
namespace {

std::string type_text(gguf_type type, bool is_array) {
  const std::string name = gguf_type_name(type);
  return is_array ? "an array of " + name : name;
}

}  // namespace

Status GgufFields::bad(std::string_view what) const {
  return corrupt(path_ + ": " + std::string(what));
}

bool GgufFields::has(const std::string& key) const {
  return gguf_find_key(context_, key.c_str()) >= 0;
}

Result<std::int64_t> GgufFields::find(const std::string& key, int type, bool is_array) const {
  const std::int64_t id = gguf_find_key(context_, key.c_str());
  if (id < 0) {
    return bad("has no key '" + key + "'");
  }
  const gguf_type kind = gguf_get_kv_type(context_, id);
  const bool found_array = kind == GGUF_TYPE_ARRAY;
  const gguf_type found = found_array ? gguf_get_arr_type(context_, id) : kind;
  if (found_array != is_array || found != static_cast<gguf_type>(type)) {
    return bad("key '" + key + "' is " + type_text(found, found_array) + ", want " +
               type_text(static_cast<gguf_type>(type), is_array));
  }
  return id;
}

Result<std::string> GgufFields::get_string(const std::string& key) const {
  const auto id = find(key, GGUF_TYPE_STRING, false);
  if (!id.ok()) {
    return id.status();
  }
  return std::string(gguf_get_val_str(context_, *id));
}

Result<std::string> GgufFields::get_string_or_empty(const std::string& key) const {
  return has(key) ? get_string(key) : Result<std::string>(std::string());
}

Result<std::uint32_t> GgufFields::get_u32(const std::string& key) const {
  const auto id = find(key, GGUF_TYPE_UINT32, false);
  if (!id.ok()) {
    return id.status();
  }
  return gguf_get_val_u32(context_, *id);
}

Result<float> GgufFields::get_f32(const std::string& key) const {
  const auto id = find(key, GGUF_TYPE_FLOAT32, false);
  if (!id.ok()) {
    return id.status();
  }
  return gguf_get_val_f32(context_, *id);
}

Result<std::uint64_t> GgufFields::get_u64(const std::string& key) const {
  const auto id = find(key, GGUF_TYPE_UINT64, false);
  if (!id.ok()) {
    return id.status();
  }
  return gguf_get_val_u64(context_, *id);
}

Result<std::vector<std::string>> GgufFields::get_strings(const std::string& key) const {
  const auto id = find(key, GGUF_TYPE_STRING, true);
  if (!id.ok()) {
    return id.status();
  }
  std::vector<std::string> result(gguf_get_arr_n(context_, *id));
  for (std::size_t i = 0; i < result.size(); i++) {
    result[i] = gguf_get_arr_str(context_, *id, i);
  }
  return result;
}

template <typename T>
Result<std::vector<T>> GgufFields::get_array(const std::string& key, int type) const {
  const auto id = find(key, type, true);
  if (!id.ok()) {
    return id.status();
  }
  std::vector<T> result(gguf_get_arr_n(context_, *id));
  if (!result.empty()) {  // ggml keeps bytes: copy, their alignment is not known
    std::memcpy(result.data(), gguf_get_arr_data(context_, *id), result.size() * sizeof(T));
  }
  return result;
}

Result<std::vector<std::uint32_t>> GgufFields::get_u32s(const std::string& key) const {
  return get_array<std::uint32_t>(key, GGUF_TYPE_UINT32);
}

Result<std::vector<std::uint64_t>> GgufFields::get_u64s(const std::string& key) const {
  return get_array<std::uint64_t>(key, GGUF_TYPE_UINT64);
}

}  // namespace cqkv
