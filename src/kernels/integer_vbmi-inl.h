// The integer kernels for AVX-512 with VBMI and VNNI: a channel's 256 centroids stand in four
// registers, and two two-register permutations look up 64 codes. Longer codes are not for these.
//
// Order of tokens. Bytes of keys are looked up in `tile` order: dword 4 L + k of the 64 bytes
// holds tokens 16 k + 4 L ... + 3. Unpacking bytes to 16 bits and then (x', y') to dwords, both
// inside lanes of 128 bits, leaves the tokens of four registers ascending. Packed angles are
// in the order between the two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

#include "kernels/coded_blocks.h"
#include "kernels/integer_kernels.h"
#include "kernels/unroll.h"

namespace cqkv::kernels {
namespace {

constexpr int kTableEntries = 256;

// Pairs whose bytes are looked up before they are multiplied.
constexpr int kChunkPairs = 16;
// Rows that one pass takes while it rotates the keys, and from a tile of rotated keys.
constexpr int kFusedRows = 8;
constexpr int kTileRows = 6;

inline __m512i load_bytes(const void* at) {
  return _mm512_loadu_si512(at);
}

inline void store_bytes(void* at, __m512i value) {
  _mm512_storeu_si512(at, value);
}

// Adds pairs of products of words, and four products of bytes, to each sum. gcc 12 copies every
// sum before and after these instructions, or puts it on the stack, unless it must not see them.
[[gnu::always_inline]] inline __m512i add_words(__m512i sum, __m512i a, __m512i b) {
  sum = _mm512_dpwssd_epi32(sum, a, b);
  asm("" : "+v"(sum));
  return sum;
}

[[gnu::always_inline]] inline __m512i add_bytes(__m512i sum, __m512i unsigned_bytes,
                                                __m512i signed_bytes) {
  sum = _mm512_dpbusd_epi32(sum, unsigned_bytes, signed_bytes);
  asm("" : "+v"(sum));
  return sum;
}

// ---------------------------------------------------------------- looking up

// The table of one channel.
struct Table {
  __m512i quarter[4];
};

inline Table load_table(const std::int8_t* table) {
  return {{load_bytes(table), load_bytes(table + 64), load_bytes(table + 128),
           load_bytes(table + 192)}};
}

inline __m512i look_up(const Table& table, __m512i codes, __mmask64 upper) {
  const __m512i low = _mm512_permutex2var_epi8(table.quarter[0], codes, table.quarter[1]);
  const __m512i high = _mm512_permutex2var_epi8(table.quarter[2], codes, table.quarter[3]);
  return _mm512_mask_blend_epi8(upper, low, high);
}

// Groups have a power of two of channels, and dividing takes long.
inline int group_of(const CodedBlocks& blocks, int channel) {
  return channel >> __builtin_ctz(static_cast<unsigned>(blocks.group_dim));
}

// kN channels of one group in all blocks; channel i of block b goes to out + (i n_blocks + b) 64.
template <int kN, bool kTile>
inline void look_up_channels(const CodedBlocks& blocks, const std::uint16_t* channels,
                             std::int8_t* out) {
  const __m512i tile_order =
      _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  Table tables[kN];
  for (int i = 0; i < kN; i++) {
    tables[i] = load_table(blocks.table + static_cast<std::size_t>(channels[i]) * kTableEntries);
  }
  const std::size_t first = static_cast<std::size_t>(group_of(blocks, channels[0])) * kBlockCells;
  for (int b = 0; b < blocks.n_blocks; b++) {
    __m512i codes = load_bytes(blocks.codes[b] + first);
    if constexpr (kTile) {
      codes = _mm512_permutexvar_epi32(tile_order, codes);
    }
    const __mmask64 upper = _mm512_movepi8_mask(codes);
    for (int i = 0; i < kN; i++) {
      store_bytes(out + (static_cast<std::size_t>(i) * blocks.n_blocks + b) * kBlockCells,
                  look_up(tables[i], codes, upper));
    }
  }
}

// The same for any channels, four of a group at a time where it has as many.
template <bool kTile>
inline void look_up_all(const CodedBlocks& blocks, const std::uint16_t* channels, int n,
                        std::int8_t* out) {
  const std::size_t stride = static_cast<std::size_t>(blocks.n_blocks) * kBlockCells;
  for (int i = 0; i < n;) {
    const int group = group_of(blocks, channels[i]);
    int run = 1;
    while (run < 4 && i + run < n && group_of(blocks, channels[i + run]) == group) {
      run++;
    }
    if (run == 4) {
      look_up_channels<4, kTile>(blocks, channels + i, out + i * stride);
    } else if (run >= 2) {
      run = 2;
      look_up_channels<2, kTile>(blocks, channels + i, out + i * stride);
    } else {
      look_up_channels<1, kTile>(blocks, channels + i, out + i * stride);
    }
    i += run;
  }
}

// ---------------------------------------------------------------- scores

// Half a block of one pair as 16-bit numbers, rotated or not: registers of (x', y').
struct PairHalf {
  __m512i low;
  __m512i high;
};

// 256 times the bytes of a half.
template <int kHalf>
inline __m512i widen_bytes(__m512i bytes) {
  const __m512i zero = _mm512_setzero_si512();
  return kHalf == 0 ? _mm512_unpacklo_epi8(zero, bytes) : _mm512_unpackhi_epi8(zero, bytes);
}

inline PairHalf interleave(__m512i x, __m512i y) {
  return {_mm512_unpacklo_epi16(x, y), _mm512_unpackhi_epi16(x, y)};
}

template <int kHalf>
inline PairHalf rotated_half(const std::int8_t* x_bytes, const std::int8_t* y_bytes,
                             const std::int16_t* angles) {
  const __m512i x = widen_bytes<kHalf>(load_bytes(x_bytes));
  const __m512i y = widen_bytes<kHalf>(load_bytes(y_bytes));
  const __m512i cosine = load_bytes(angles + kHalf * 32);
  const __m512i sine = load_bytes(angles + kBlockCells + kHalf * 32);
  return interleave(_mm512_sub_epi16(_mm512_mulhrs_epi16(x, cosine), _mm512_mulhrs_epi16(y, sine)),
                    _mm512_add_epi16(_mm512_mulhrs_epi16(x, sine), _mm512_mulhrs_epi16(y, cosine)));
}

template <int kHalf>
inline PairHalf plain_half(const std::int8_t* x_bytes, const std::int8_t* y_bytes) {
  return interleave(_mm512_srai_epi16(widen_bytes<kHalf>(load_bytes(x_bytes)), 3),
                    _mm512_srai_epi16(widen_bytes<kHalf>(load_bytes(y_bytes)), 3));
}

// Some pairs of all blocks, looked up: x of pair i of block b at bytes + (i n_blocks + b) 64, y
// kChunkPairs pairs behind it.
struct PairChunk {
  int first = 0;
  int n = 0;
  int n_rotated = 0;
  std::int8_t* bytes = nullptr;
};

inline PairChunk look_up_pairs(const ScoreCodes& call, int first, std::int8_t* bytes) {
  PairChunk chunk;
  chunk.first = first;
  chunk.n = call.n_pairs - first < kChunkPairs ? call.n_pairs - first : kChunkPairs;
  const int rotated = call.n_rotated - first;
  chunk.n_rotated = rotated < 0 ? 0 : rotated < chunk.n ? rotated : chunk.n;
  chunk.bytes = bytes;
  std::uint16_t channels[2 * kChunkPairs];
  for (int i = 0; i < chunk.n; i++) {
    channels[i] = call.pairs[first + i].x;
    channels[kChunkPairs + i] = call.pairs[first + i].y;
  }
  const std::size_t y_offset =
      static_cast<std::size_t>(kChunkPairs) * call.blocks.n_blocks * kBlockCells;
  look_up_all<true>(call.blocks, channels, chunk.n, bytes);
  look_up_all<true>(call.blocks, channels + kChunkPairs, chunk.n, bytes + y_offset);
  return chunk;
}

template <int kRows>
inline void add_products(__m512i (&sums)[kRows][2], const PairHalf& keys,
                         const std::uint32_t* queries, std::size_t stride) {
  CQKV_UNROLLED
  for (int r = 0; r < kRows; r++) {
    const __m512i query = _mm512_set1_epi32(static_cast<int>(queries[r * stride]));
    sums[r][0] = add_words(sums[r][0], keys.low, query);
    sums[r][1] = add_words(sums[r][1], keys.high, query);
  }
}

// Adds a chunk of pairs to the sums of half a block, which stand in the scores.
template <int kRows, int kHalf>
inline void score_half(const ScoreCodes& call, const PairChunk& chunk, int block, int first_row) {
  const std::size_t x_stride = static_cast<std::size_t>(call.blocks.n_blocks) * kBlockCells;
  const std::int8_t* x = chunk.bytes + static_cast<std::size_t>(block) * kBlockCells;
  const std::int8_t* y = x + kChunkPairs * x_stride;
  const std::int16_t* angles =
      call.rotation + static_cast<std::size_t>(chunk.first) * 2 * kBlockCells;
  const std::uint32_t* queries = call.queries[block] + first_row * call.query_stride + chunk.first;
  float* scores = call.scores +
                  (static_cast<std::size_t>(block) * call.n_rows + first_row) * kBlockCells +
                  kHalf * 32;
  __m512i sums[kRows][2];
  CQKV_UNROLLED
  for (int r = 0; r < kRows; r++) {
    CQKV_UNROLLED
    for (int v = 0; v < 2; v++) {
      sums[r][v] =
          chunk.first == 0 ? _mm512_setzero_si512() : load_bytes(scores + r * kBlockCells + v * 16);
    }
  }
  for (int i = 0; i < chunk.n; i++, x += x_stride, y += x_stride, angles += 2 * kBlockCells) {
    // One loop for both: between two the sums would go through memory.
    const PairHalf keys =
        i < chunk.n_rotated ? rotated_half<kHalf>(x, y, angles) : plain_half<kHalf>(x, y);
    add_products<kRows>(sums, keys, queries + i, call.query_stride);
  }
  const bool last = chunk.first + chunk.n == call.n_pairs;
  CQKV_UNROLLED
  for (int r = 0; r < kRows; r++) {
    CQKV_UNROLLED
    for (int v = 0; v < 2; v++) {
      float* at = scores + r * kBlockCells + v * 16;
      if (last) {
        _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][v]),
                                           _mm512_set1_ps(call.factors[first_row + r])));
      } else {
        store_bytes(at, sums[r][v]);
      }
    }
  }
}

template <int kRows>
inline void score_chunk(const ScoreCodes& call, const PairChunk& chunk) {
  for (int block = 0; block < call.blocks.n_blocks; block++) {
    score_half<kRows, 0>(call, chunk, block, 0);
    score_half<kRows, 1>(call, chunk, block, 0);
  }
}

// Few rows: keys are multiplied as soon as they are rotated.
inline void score_few(const ScoreCodes& call) {
  using ScoreChunk = void (*)(const ScoreCodes&, const PairChunk&);
  constexpr ScoreChunk kByRows[kFusedRows] = {score_chunk<1>, score_chunk<2>, score_chunk<3>,
                                              score_chunk<4>, score_chunk<5>, score_chunk<6>,
                                              score_chunk<7>, score_chunk<8>};
  alignas(64) std::int8_t bytes[2 * kChunkPairs * kMaxChunk * kBlockCells];
  for (int first = 0; first < call.n_pairs; first += kChunkPairs) {
    kByRows[call.n_rows - 1](call, look_up_pairs(call, first, bytes));
  }
}

// Rows [first, first + kRows) against a tile [pair, 64] of (x', y').
template <int kRows>
inline void score_tile_rows(const ScoreCodes& call, int block, int first,
                            const std::uint32_t* tile) {
  const std::uint32_t* queries = call.queries[block] + first * call.query_stride;
  __m512i sums[kRows][4] = {};
  for (int i = 0; i < call.n_pairs; i++) {
    __m512i keys[4];
    CQKV_UNROLLED
    for (int v = 0; v < 4; v++) {
      keys[v] = load_bytes(tile + static_cast<std::size_t>(i) * kBlockCells + v * 16);
    }
    CQKV_UNROLLED
    for (int r = 0; r < kRows; r++) {
      const __m512i query = _mm512_set1_epi32(static_cast<int>(queries[r * call.query_stride + i]));
      CQKV_UNROLLED
      for (int v = 0; v < 4; v++) {
        sums[r][v] = add_words(sums[r][v], keys[v], query);
      }
    }
  }
  float* scores =
      call.scores + (static_cast<std::size_t>(block) * call.n_rows + first) * kBlockCells;
  CQKV_UNROLLED
  for (int r = 0; r < kRows; r++) {
    const __m512 factor = _mm512_set1_ps(call.factors[first + r]);
    CQKV_UNROLLED
    for (int v = 0; v < 4; v++) {
      _mm512_storeu_ps(scores + r * kBlockCells + v * 16,
                       _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][v]), factor));
    }
  }
}

inline void store_pair(std::uint32_t* tile, const PairHalf& first, const PairHalf& second) {
  store_bytes(tile, first.low);
  store_bytes(tile + 16, first.high);
  store_bytes(tile + 32, second.low);
  store_bytes(tile + 48, second.high);
}

inline void rotate_chunk(const ScoreCodes& call, const PairChunk& chunk, std::uint32_t* tile) {
  const std::int8_t* x = chunk.bytes;
  const std::int8_t* y = x + kChunkPairs * kBlockCells;
  const std::int16_t* angles =
      call.rotation + static_cast<std::size_t>(chunk.first) * 2 * kBlockCells;
  for (int i = 0; i < chunk.n; i++, x += kBlockCells, y += kBlockCells) {
    std::uint32_t* at = tile + static_cast<std::size_t>(chunk.first + i) * kBlockCells;
    if (i < chunk.n_rotated) {
      store_pair(at, rotated_half<0>(x, y, angles + i * 2 * kBlockCells),
                 rotated_half<1>(x, y, angles + i * 2 * kBlockCells));
    } else {
      store_pair(at, plain_half<0>(x, y), plain_half<1>(x, y));
    }
  }
}

// The call for one of its blocks.
inline ScoreCodes block_of(const ScoreCodes& call, int block) {
  ScoreCodes one = call;
  one.blocks.n_blocks = 1;
  one.blocks.codes[0] = call.blocks.codes[block];
  one.queries[0] = call.queries[block];
  one.scores = call.scores + static_cast<std::size_t>(block) * call.n_rows * kBlockCells;
  return one;
}

// Many rows: the rotated keys of a block are kept.
inline void score_many(const ScoreCodes& call) {
  alignas(64) std::int8_t bytes[2 * kChunkPairs * kBlockCells];
  auto* tile = reinterpret_cast<std::uint32_t*>(call.scratch);
  for (int first = 0; first < call.n_pairs; first += kChunkPairs) {
    rotate_chunk(call, look_up_pairs(call, first, bytes), tile);
  }
  using ScoreRows = void (*)(const ScoreCodes&, int, int, const std::uint32_t*);
  constexpr ScoreRows kByRows[kTileRows] = {score_tile_rows<1>, score_tile_rows<2>,
                                            score_tile_rows<3>, score_tile_rows<4>,
                                            score_tile_rows<5>, score_tile_rows<6>};
  for (int row = 0; row < call.n_rows; row += kTileRows) {
    const int left = call.n_rows - row;
    kByRows[(left < kTileRows ? left : kTileRows) - 1](call, 0, row, tile);
  }
}

void score_codes(const ScoreCodes& call) noexcept {
  if (call.n_rows <= kFusedRows) {
    return score_few(call);
  }
  for (int block = 0; block < call.blocks.n_blocks; block++) {
    score_many(block_of(call, block));
  }
}

// ---------------------------------------------------------------- values

// Sixteen channels of one block: from 64 tokens of a channel in a register to 4 tokens of
// sixteen channels.
[[gnu::always_inline]] inline void transpose_dwords(const std::int8_t* bytes, std::size_t stride,
                                                    __m512i (&out)[16]) {
  __m512i pair[16];
  CQKV_UNROLLED
  for (int i = 0; i < 16; i += 2) {
    __m512i a = load_bytes(bytes + i * stride);
    __m512i b = load_bytes(bytes + (i + 1) * stride);
    asm("" : "+v"(a), "+v"(b));  // gcc 12 would put one of them on the stack
    pair[i] = _mm512_unpacklo_epi32(a, b);
    pair[i + 1] = _mm512_unpackhi_epi32(a, b);
  }
  __m512i four[16];  // [four channels][quad modulo 4]: lane L holds quad 4 L + that
  CQKV_UNROLLED
  for (int i = 0; i < 16; i += 4) {
    four[i] = _mm512_unpacklo_epi64(pair[i], pair[i + 2]);
    four[i + 1] = _mm512_unpackhi_epi64(pair[i], pair[i + 2]);
    four[i + 2] = _mm512_unpacklo_epi64(pair[i + 1], pair[i + 3]);
    four[i + 3] = _mm512_unpackhi_epi64(pair[i + 1], pair[i + 3]);
  }
  CQKV_UNROLLED
  for (int q = 0; q < 4; q++) {
    const __m512i low01 = _mm512_shuffle_i32x4(four[q], four[4 + q], 0x44);
    const __m512i high01 = _mm512_shuffle_i32x4(four[q], four[4 + q], 0xEE);
    const __m512i low23 = _mm512_shuffle_i32x4(four[8 + q], four[12 + q], 0x44);
    const __m512i high23 = _mm512_shuffle_i32x4(four[8 + q], four[12 + q], 0xEE);
    out[q] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    out[4 + q] = _mm512_shuffle_i32x4(low01, low23, 0xDD);
    out[8 + q] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    out[12 + q] = _mm512_shuffle_i32x4(high01, high23, 0xDD);
  }
}

// kRows rows of one block and sixteen channels.
template <int kRows>
[[gnu::always_inline]] inline void accumulate_tile(const AccumulateCodes& call,
                                                   const __m512i (&values)[16], int block,
                                                   int first_row, int channel) {
  const std::size_t row = static_cast<std::size_t>(block) * call.n_rows + first_row;
  const auto* p = call.p + row * kBlockCells;
  __m512i sums[kRows] = {};
  CQKV_UNROLLED_16
  for (int q = 0; q < 16; q++) {
    CQKV_UNROLLED
    for (int r = 0; r < kRows; r++) {
      std::int32_t four = 0;
      std::memcpy(&four, p + r * kBlockCells + q * 4, sizeof(four));
      sums[r] = add_bytes(sums[r], _mm512_set1_epi32(four), values[q]);
    }
  }
  const __m512 scales = _mm512_loadu_ps(call.scales + channel);
  float* out = call.out + first_row * call.out_stride + channel;
  CQKV_UNROLLED
  for (int r = 0; r < kRows; r++, out += call.out_stride) {
    const __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(out), _mm512_set1_ps(call.rescale[row + r]));
    const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(call.weights[row + r]), scales);
    _mm512_storeu_ps(out, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r]), factor, kept));
  }
}

// Sixteen channels of all blocks that have been looked up: channel i of block b is at
// bytes + (i n_blocks + b) 64.
template <int kRows>
void accumulate_few(const AccumulateCodes& call, const std::int8_t* bytes, int channel) {
  const std::size_t stride = static_cast<std::size_t>(call.blocks.n_blocks) * kBlockCells;
  for (int block = 0; block < call.blocks.n_blocks; block++, bytes += kBlockCells) {
    __m512i values[16];
    transpose_dwords(bytes, stride, values);
    accumulate_tile<kRows>(call, values, block, 0, channel);
  }
}

void accumulate_many(const AccumulateCodes& call, const std::int8_t* bytes, int channel) {
  using AccumulateTile = void (*)(const AccumulateCodes&, const __m512i(&)[16], int, int, int);
  constexpr AccumulateTile kByRows[kFusedRows] = {
      accumulate_tile<1>, accumulate_tile<2>, accumulate_tile<3>, accumulate_tile<4>,
      accumulate_tile<5>, accumulate_tile<6>, accumulate_tile<7>, accumulate_tile<8>};
  const std::size_t stride = static_cast<std::size_t>(call.blocks.n_blocks) * kBlockCells;
  for (int block = 0; block < call.blocks.n_blocks; block++, bytes += kBlockCells) {
    __m512i values[16];
    transpose_dwords(bytes, stride, values);
    for (int row = 0; row < call.n_rows; row += kFusedRows) {
      const int left = call.n_rows - row;
      kByRows[(left < kFusedRows ? left : kFusedRows) - 1](call, values, block, row, channel);
    }
  }
}

void accumulate_codes(const AccumulateCodes& call) noexcept {
  using Accumulate = void (*)(const AccumulateCodes&, const std::int8_t*, int);
  constexpr Accumulate kByRows[kFusedRows] = {
      accumulate_few<1>, accumulate_few<2>, accumulate_few<3>, accumulate_few<4>,
      accumulate_few<5>, accumulate_few<6>, accumulate_few<7>, accumulate_few<8>};
  const Accumulate accumulate =
      call.n_rows <= kFusedRows ? kByRows[call.n_rows - 1] : accumulate_many;
  alignas(64) std::int8_t bytes[16 * kMaxChunk * kBlockCells];
  const std::size_t stride = static_cast<std::size_t>(call.blocks.n_blocks) * kBlockCells;
  for (int channel = 0; channel < call.blocks.n_channels; channel += 16) {
    std::uint16_t channels[16];
    int n = 0;
    for (; n < 16 && channel + n < call.blocks.n_channels; n++) {
      channels[n] = static_cast<std::uint16_t>(channel + n);
    }
    look_up_all<false>(call.blocks, channels, n, bytes);
    std::memset(bytes + n * stride, 0, (16 - n) * stride);
    accumulate(call, bytes, channel);
  }
}

// ---------------------------------------------------------------- angles

// [pair, cosines or sines, token], tokens in the order of bytes unpacked to words.
void pack_angles(const float* cosines, const float* sines, int n_pairs, float factor,
                 std::int16_t* packed) noexcept {
  const __m512 scale = _mm512_set1_ps(factor);
  for (int i = 0; i < 2 * n_pairs; i++, packed += kBlockCells) {
    const float* values = (i % 2 == 0 ? cosines : sines) + i / 2 * kBlockCells;
    __m512i words[4];
    for (int v = 0; v < 4; v++) {
      words[v] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values + v * 16), scale));
    }
    store_bytes(packed, _mm512_packs_epi32(words[0], words[1]));
    store_bytes(packed + 32, _mm512_packs_epi32(words[2], words[3]));
  }
}

constexpr IntegerKernels kVbmiIntegerKernels = {.table_order = TableOrder::kByChannel,
                                                .max_code_bits = 8,
                                                .pack_angles = pack_angles,
                                                .score_codes = score_codes,
                                                .accumulate_codes = accumulate_codes};

}  // namespace
}  // namespace cqkv::kernels
