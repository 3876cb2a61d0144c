// AVX2: where the channels of tokens come from. The centroids of a group stand in memory as they
// are, so one load gives eight channels of a token. What is multiplied with them is not here. Part
// of integer_avx2-inl.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

#include "kernels/coded_blocks.h"

namespace cqkv::kernels {
namespace {

// Channels that are decoded together.
constexpr int kSlice = 8;

inline __m256i load_bytes(const void* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}

inline void store_bytes(void* at, __m256i value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), value);
}

// Eight channels of one token, and no byte more: a longer load would often touch two lines.
inline __m128i load_slice(const void* at) {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
}

[[gnu::always_inline]] inline __m256i join(__m128i low, __m128i high) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

// As join() for freshly loaded values, of their lower halves: broadcast plus blend avoids the
// scarce insert port.
template <bool kLoaded>
[[gnu::always_inline]] inline __m256i join_halves(__m128i low, __m128i high) {
  if constexpr (kLoaded) {
    return _mm256_blend_epi32(_mm256_broadcastq_epi64(low), _mm256_broadcastq_epi64(high), 0xF0);
  } else {
    return join(low, high);
  }
}

// Asks for the codes of n groups of a block.
template <typename Code>
[[gnu::always_inline]] inline void prefetch_codes(const Code* codes, int n) {
  for (std::size_t i = 0; i < n * sizeof(Code); i++) {
    _mm_prefetch(reinterpret_cast<const char*>(codes) + i * 64, _MM_HINT_T0);
  }
}

// Eight channels of one token from groups of kDim in the lower half, whose upper half is anything;
// group i is at at(i).
template <int kDim, typename At>
[[gnu::always_inline]] inline __m128i load_groups(const At& at) {
  if constexpr (kDim >= kSlice) {
    return load_slice(at(0));
  } else if constexpr (kDim == 4) {
    std::int32_t second = 0;
    std::memcpy(&second, at(1), sizeof(second));
    return _mm_insert_epi32(_mm_loadu_si32(at(0)), second, 1);
  } else if constexpr (kDim == 2) {
    std::uint16_t parts[4];
    for (int i = 1; i < 4; i++) {
      std::memcpy(&parts[i], at(i), sizeof(parts[i]));
    }
    // What is behind the first two bytes is replaced.
    __m128i channels = _mm_insert_epi16(_mm_loadu_si32(at(0)), parts[1], 1);
    channels = _mm_insert_epi16(channels, parts[2], 2);
    return _mm_insert_epi16(channels, parts[3], 3);
  } else {
    std::uint64_t word = 0;
    for (int i = 0; i < kSlice / kDim; i++) {
      std::uint64_t part = 0;
      std::memcpy(&part, at(i), kDim);
      word |= part << (8 * kDim * i);
    }
    return _mm_cvtsi64_si128(static_cast<long long>(word));
  }
}

// Where channels [8 s, 8 s + 8) of a head come from in one block: tables and codes of their
// groups. Beyond the head's last channel the last group is repeated.
template <int kDim, typename Code>
struct SliceSource {
  static constexpr int kGroups = kDim >= kSlice ? 1 : kSlice / kDim;
  const std::int8_t* tables[kGroups];
  const Code* codes[kGroups];

  SliceSource(const CodedBlocks& blocks, int block, int channel) {
    const int last = blocks.n_channels / kDim - 1;
    for (int i = 0; i < kGroups; i++) {
      const int wanted = channel / kDim + i;
      const int group = wanted < last ? wanted : last;
      tables[i] = blocks.table + group * table_entries(blocks.code_bits) * kDim +
                  (kDim > kSlice ? channel % kDim : 0);
      codes[i] = reinterpret_cast<const Code*>(blocks.codes[block]) +
                 static_cast<std::size_t>(group) * kBlockCells;
    }
  }

  // Eight channels of token t in the lower half; the upper half is anything.
  [[gnu::always_inline]] __m128i row(int t) const {
    return load_groups<kDim>(
        [&](int i) { return tables[i] + static_cast<std::size_t>(codes[i][t]) * kDim; });
  }
};

// Two slices side by side: eight channels of token t of each in the lower halves of both lanes.
template <int kDim, typename Code>
[[gnu::always_inline]] inline __m256i join_rows(const SliceSource<kDim, Code>& low,
                                                const SliceSource<kDim, Code>& high, int t) {
  return join_halves<(kDim >= kSlice)>(low.row(t), high.row(t));
}

}  // namespace
}  // namespace cqkv::kernels
