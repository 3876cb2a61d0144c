// With which environment variables and flags llama.cpp's programs keep their cache on the KV
// device.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "cache/window_pool.h"

namespace cqkv::app {

/// Names and values.
using Environment = std::vector<std::pair<std::string, std::string>>;

/// What the device is to use.
struct DeviceSettings {
  std::vector<std::string> codebooks;
  WindowOverride window;
  int n_sequences = 1;  ///< Whose windows the device makes room for where they share one cache.
};

/// The user's own CQKV_SEQUENCES goes first.
Environment device_environment(const DeviceSettings& settings);

/// All variables that device_environment may set.
const std::vector<std::string>& device_variables();

/// All layers on the device.
std::vector<std::string> device_flags();

}  // namespace cqkv::app
