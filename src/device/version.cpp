// See version.h. CQKV_GGML_VERSION comes from the build (src/device/CMakeLists.txt).
#include "device/version.h"

#include <string>

namespace cqkv::device {

Status check_ggml_version(const char* version) {
  const std::string got = version == nullptr ? "unknown" : version;
  if (got == CQKV_GGML_VERSION) {
    return {};
  }
  return {StatusCode::kMismatch, "the host's ggml is version " + got +
                                     ", this device was built for " CQKV_GGML_VERSION
                                     "; use the programs that were built with it"};
}

}  // namespace cqkv::device
