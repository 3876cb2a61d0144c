// See device_environment.h.
#include "device_environment.h"

#include <cstdlib>

#include "places.h"

namespace cqkv::app {
namespace {

std::string joined(const std::vector<std::string>& paths) {
  std::string result;
  for (const auto& path : paths) {
    result += (result.empty() ? "" : ":") + path;
  }
  return result;
}

}  // namespace

Environment device_environment(const DeviceSettings& settings) {
  Environment environment = {{"GGML_BACKEND_PATH", device_library()},
                             {"CQKV_CODEBOOK", joined(settings.codebooks)}};
  if (settings.window) {
    environment.emplace_back("CQKV_WINDOW", std::to_string(*settings.window));
  }
  if (settings.sinks) {
    environment.emplace_back("CQKV_SINKS", std::to_string(*settings.sinks));
  }
  if (std::getenv("CQKV_SEQUENCES") == nullptr) {
    environment.emplace_back("CQKV_SEQUENCES", std::to_string(settings.n_sequences));
  }
  return environment;
}

const std::vector<std::string>& device_variables() {
  static const std::vector<std::string> names = {"GGML_BACKEND_PATH", "CQKV_CODEBOOK",
                                                 "CQKV_WINDOW", "CQKV_SINKS", "CQKV_SEQUENCES"};
  return names;
}

std::vector<std::string> device_flags() {
  return {"-dev", "CQ0", "-ngl", "99"};
}

}  // namespace cqkv::app
