// Fuzz target: operations on a coded cache against a plain model. The first byte chooses
// the kind of cache, the others are the operations (device/cache_model.h).
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include <ggml.h>

#include "device/cache_model.h"

namespace {

void no_log(ggml_log_level /*level*/, const char* /*text*/, void* /*user*/) {
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using cqkv::device::CacheKind;
  using cqkv::device::CacheModel;
  static const std::array<std::unique_ptr<CacheModel>, 3> models = [] {
    ggml_log_set(no_log, nullptr);
    return std::array{std::make_unique<CacheModel>(CacheKind::kUnified),
                      std::make_unique<CacheModel>(CacheKind::kSmallPool),
                      std::make_unique<CacheModel>(CacheKind::kStreams)};
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
