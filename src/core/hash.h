// 64-bit hashes for identities (of codebooks) and fingerprints (of models):
// xxHash's XXH3. A check against mix-ups, not against malice.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cqkv {

/// XXH3-64 of `size` bytes; chain pieces by passing the last result as `seed`.
std::uint64_t hash_bytes(const void* data, std::size_t size, std::uint64_t seed = 0);

}  // namespace cqkv
