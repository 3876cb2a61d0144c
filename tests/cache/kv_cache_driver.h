// The cache model on KvCache itself.
#pragma once

#include "cache/cache_driver.h"

namespace cqkv::testing {

std::unique_ptr<CacheDriver> make_kv_cache_driver(const Codebook& codebook, int n_streams,
                                                  int pool_sequences);

}  // namespace cqkv::testing
