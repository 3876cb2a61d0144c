// Random operations on a coded cache against the plain model of cache_model.h.
//
// CQKV_CACHE_MODEL_OPS sets how many operations each kind of cache gets (default 10,000).
#pragma once

#include <cstdio>
#include <cstdlib>
#include <vector>

#include <gtest/gtest.h>

#include "cache/cache_model.h"
#include "core/rng.h"

namespace cqkv::testing {

inline std::size_t n_operations() {
  const char* text = std::getenv("CQKV_CACHE_MODEL_OPS");
  return text == nullptr ? 10000 : std::strtoull(text, nullptr, 10);
}

inline void run_random(MakeDriver make_driver, CacheKind kind) {
  CacheModel model(make_driver, kind);
  for (std::uint64_t seed = 1; model.counts().n_operations < n_operations(); seed++) {
    Rng rng(seed);
    std::vector<std::uint8_t> bytes(rng.below(4000));
    for (auto& byte : bytes) {
      byte = static_cast<std::uint8_t>(rng.below(256));
    }
    ASSERT_EQ(model.run(bytes), "") << "seed " << seed;
  }
  const CacheModelCounts& counts = model.counts();
  std::printf("%zu operations, %zu queries, cells seen: %zu exactly, %zu coded\n",
              counts.n_operations, counts.n_attended, counts.n_exact, counts.n_coded);
  EXPECT_GT(counts.n_attended, counts.n_operations / 4);
  EXPECT_GT(counts.n_exact, counts.n_attended);
  EXPECT_GT(counts.n_coded, counts.n_attended);
}

}  // namespace cqkv::testing
