// See host_memory.h.
#include "device/host_memory.h"

#include <cstdio>
#include <memory>

#include <unistd.h>

namespace cqkv::device {
namespace {

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

std::size_t pages(int name) {
  const long n = sysconf(name);
  return n < 0 ? 0 : static_cast<std::size_t>(n) * static_cast<std::size_t>(sysconf(_SC_PAGE_SIZE));
}

}  // namespace

HostMemory host_memory() {
  HostMemory result{pages(_SC_PHYS_PAGES), pages(_SC_AVPHYS_PAGES)};
  const std::unique_ptr<std::FILE, CloseFile> file(std::fopen("/proc/meminfo", "r"));
  char line[128];
  while (file != nullptr && std::fgets(line, sizeof(line), file.get()) != nullptr) {
    unsigned long long kib = 0;
    // NOLINTNEXTLINE(cert-err34-c): what cannot be read is not counted as a match
    if (std::sscanf(line, "MemAvailable: %llu kB", &kib) == 1) {
      result.available = static_cast<std::size_t>(kib) * 1024;
    }
  }
  return result;
}

}  // namespace cqkv::device
