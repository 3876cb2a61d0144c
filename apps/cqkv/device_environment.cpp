// See device_environment.h.
#include "device_environment.h"

#include <cstdlib>

#include "command.h"
#include "places.h"

namespace cqkv::app {

Environment device_environment(const DeviceSettings& settings) {
  Environment environment = {{"GGML_BACKEND_PATH", device_library()},
                             {"CQKV_CODEBOOK", joined(settings.codebooks, ":")}};
  const auto add = [&](const char* name, const std::optional<int>& number) {
    if (number) {
      environment.emplace_back(name, std::to_string(*number));
    }
  };
  add("CQKV_WINDOW", settings.window.window);
  add("CQKV_SINKS", settings.window.sinks);
  add("CQKV_SPARE", settings.window.spare);
  if (std::getenv("CQKV_SEQUENCES") == nullptr) {
    environment.emplace_back("CQKV_SEQUENCES", std::to_string(settings.n_sequences));
  }
  return environment;
}

const std::vector<std::string>& device_variables() {
  static const std::vector<std::string> names = {"GGML_BACKEND_PATH", "CQKV_CODEBOOK",
                                                 "CQKV_WINDOW",       "CQKV_SINKS",
                                                 "CQKV_SPARE",        "CQKV_SEQUENCES"};
  return names;
}

std::vector<std::string> device_flags() {
  return {"-dev", "CQ0", "-ngl", "99"};
}

}  // namespace cqkv::app
