// Random operations on KvCache (random_runs.h).
#include "cache/kv_cache_driver.h"
#include "cache/random_runs.h"

namespace cqkv::testing {
namespace {

TEST(CacheModel, Unified) {
  run_random(make_kv_cache_driver, CacheKind::kUnified);
}

TEST(CacheModel, SmallPool) {
  run_random(make_kv_cache_driver, CacheKind::kSmallPool);
}

TEST(CacheModel, Streams) {
  run_random(make_kv_cache_driver, CacheKind::kStreams);
}

}  // namespace
}  // namespace cqkv::testing
