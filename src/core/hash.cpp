// hash.h on top of xxHash, inlined so that the installed library needs no other.
#include "core/hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace cqkv {

std::uint64_t hash_bytes(const void* data, std::size_t size, std::uint64_t seed) {
  return XXH3_64bits_withSeed(data, size, seed);
}

}  // namespace cqkv
