// Fuzz target: operations on a coded cache against a plain model. The first byte chooses
// the kind of cache, the others are the operations (cache/cache_model.h).
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "cache/cache_model.h"
#include "cache/kv_cache_driver.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using cqkv::testing::CacheKind;
  using cqkv::testing::CacheModel;
  using cqkv::testing::make_kv_cache_driver;
  static const std::array<std::unique_ptr<CacheModel>, 3> models = [] {
    return std::array{std::make_unique<CacheModel>(make_kv_cache_driver, CacheKind::kUnified),
                      std::make_unique<CacheModel>(make_kv_cache_driver, CacheKind::kSmallPool),
                      std::make_unique<CacheModel>(make_kv_cache_driver, CacheKind::kStreams)};
  }();
  if (size == 0) {
    return 0;
  }
  const std::string wrong = models[data[0] % models.size()]->run({data + 1, size - 1});
  if (!wrong.empty()) {
    std::fprintf(stderr, "%s\n", wrong.c_str());
    std::abort();
  }
  return 0;
}
