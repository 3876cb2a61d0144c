// See kv_device.h.
#include "eval/kv_device.h"

#include <cstdlib>
#include <filesystem>

#include "llama/log.h"

namespace cqkv::eval {
namespace {

template <typename Function>
Function proc(ggml_backend_reg_t registry, const char* name) {
  return reinterpret_cast<Function>(ggml_backend_reg_get_proc_address(registry, name));
}

}  // namespace

Result<KvDevice> KvDevice::load(const std::string& library) {
  if (!std::filesystem::exists(library)) {
    return Status(
        StatusCode::kNotFound,
        "KV device: " + library + " does not exist; it is built beside cqkv (make build)");
  }
  ::setenv("CQKV_CODEBOOK", "", 1);
  take_llama_errors();
  KvDevice result;
  result.registry_ = ggml_backend_load(library.c_str());
  if (result.registry_ == nullptr) {
    const std::string reason = take_llama_errors();
    return unsupported("KV device: ggml refuses " + library +
                       (reason.empty() ? std::string() : ": " + reason) +
                       "; rebuild cqkv against this llama.cpp");
  }
  if (ggml_backend_reg_dev_count(result.registry_) == 0) {
    const std::string reason = result.last_error();
    return unsupported("KV device: " + library + " offers no device" +
                       (reason.empty() ? std::string() : ": " + reason));
  }
  result.device_ = ggml_backend_reg_dev_get(result.registry_, 0);
  return result;
}

Status KvDevice::set_codebook(const std::string& path) const {
  const auto set = proc<const char* (*)(const char*)>(registry_, "cqkv_set_codebook");
  if (set == nullptr) {
    return unsupported("KV device: it has no function cqkv_set_codebook; rebuild cqkv");
  }
  const char* error = set(path.c_str());
  return error == nullptr ? Status() : Status(StatusCode::kInvalidArgument, error);
}

Status KvDevice::set_window(const WindowOverride& window) const {
  const auto set = proc<void (*)(int, int, int, int)>(registry_, "cqkv_set_window");
  if (set == nullptr) {
    return unsupported("KV device: it has no function cqkv_set_window; rebuild cqkv");
  }
  set(window.window.value_or(-1), window.sinks.value_or(-1), window.spare.value_or(-1), 1);
  return {};
}

Status KvDevice::use_byte_tables(bool wanted) const {
  const auto use = proc<void (*)(int)>(registry_, "cqkv_use_byte_tables");
  if (use == nullptr) {
    return unsupported("KV device: it has no function cqkv_use_byte_tables; rebuild cqkv");
  }
  use(wanted ? 1 : 0);
  return {};
}

std::string KvDevice::last_error() const {
  const auto get = proc<const char* (*)()>(registry_, "cqkv_last_error");
  const char* text = get == nullptr ? nullptr : get();
  return text == nullptr ? std::string() : text;
}

std::optional<std::uint64_t> KvDevice::cache_bytes() const {
  const auto get = proc<std::uint64_t (*)()>(registry_, "cqkv_cache_bytes");
  return get == nullptr ? std::nullopt : std::optional(get());
}

}  // namespace cqkv::eval
