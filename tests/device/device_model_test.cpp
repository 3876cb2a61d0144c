// Random operations on the device's caches (random_runs.h): that the adapter asks the cache for the
// right things.
#include "cache/random_runs.h"
#include "device/device_driver.h"

namespace cqkv::testing {
namespace {

TEST(DeviceModel, Unified) {
  run_random(make_device_driver, CacheKind::kUnified);
}

TEST(DeviceModel, SmallPool) {
  run_random(make_device_driver, CacheKind::kSmallPool);
}

TEST(DeviceModel, Streams) {
  run_random(make_device_driver, CacheKind::kStreams);
}

}  // namespace
}  // namespace cqkv::testing
