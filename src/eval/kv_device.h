// The KV device (libggml-cq.so) as its users see it: loaded at run time, steered
// through the few functions that it exports by name. Its inside is src/device.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <ggml-backend.h>

#include "cqkv/status.h"

#include "cache/window_pool.h"

namespace cqkv::eval {

class KvDevice {
 public:
  /// Loads the library, once a process; ggml never unloads it. Caches stay
  /// 16-bit until set_codebook, whatever the environment says (CQKV_CODEBOOK).
  /// @return kNotFound or kUnsupported with ggml's and the device's reason.
  static Result<KvDevice> load(const std::string& library);

  ggml_backend_dev_t device() const { return device_; }

  /// The codebook for caches allocated from now on; "" keeps them 16-bit.
  Status set_codebook(const std::string& path) const;

  /// The window of caches coded from the next set_codebook on, made for one sequence;
  /// nothing: the codebook's.
  Status set_window(const WindowOverride& window) const;

  /// Whether caches coded from the next set_codebook on may use centroids as bytes.
  Status use_byte_tables(bool wanted) const;

  /// The device's last refusal, or "".
  std::string last_error() const;

  /// Bytes of the newest KV buffer as allocated; nothing if the device does not say.
  std::optional<std::uint64_t> cache_bytes() const;

 private:
  ggml_backend_reg_t registry_ = nullptr;
  ggml_backend_dev_t device_ = nullptr;
};

}  // namespace cqkv::eval
