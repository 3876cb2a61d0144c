// How much memory the machine has: the device's caches live in it. llama.cpp's -fit asks, and
// makes the context smaller if it must.
#pragma once

#include <cstddef>

namespace cqkv::device {

struct HostMemory {
  std::size_t total = 0;      ///< Bytes.
  std::size_t available = 0;  ///< What programs can still get, files that are only cached included.
};

/// From /proc/meminfo; without it from sysconf, which counts cached files as used.
HostMemory host_memory();

}  // namespace cqkv::device
