// The cache model (tests/cache/cache_model.h) on the device: ggml nodes of the kinds that llama.cpp
// makes, run by the device's own operations.
#pragma once

#include "cache/cache_driver.h"

namespace cqkv::testing {

/// Sets the device's library, window and path of attention for the process. Aborts without memory.
std::unique_ptr<CacheDriver> make_device_driver(const Codebook& codebook, int n_streams,
                                                int pool_sequences);

}  // namespace cqkv::testing
