// AVX2: weighted sums of values, four tokens and sixteen channels at a time. Part of
// integer_avx2-inl.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

#include "kernels/avx2_rows-inl.h"
#include "kernels/coded_blocks.h"

namespace cqkv::kernels {
namespace {

// Rows of one pass over decoded values.
constexpr int kValueRows = 4;
// Up to so many rows values are multiplied as they are decoded, half as many channels at a time.
constexpr int kMaxFewRows = 8;

// Sixteen channels of tokens t to t + 3, channel by channel: channels 0-3 and 8-11 in the first
// register, 4-7 and 12-15 in the other.
struct TokenQuad {
  __m256i first;
  __m256i second;
};

template <int kDim, typename Code>
[[gnu::always_inline]] inline TokenQuad load_token_quad(const SliceSource<kDim, Code>& low,
                                                        const SliceSource<kDim, Code>& high,
                                                        int t) {
  const __m256i two = _mm256_unpacklo_epi8(join_rows(low, high, t), join_rows(low, high, t + 1));
  const __m256i next =
      _mm256_unpacklo_epi8(join_rows(low, high, t + 2), join_rows(low, high, t + 3));
  return {_mm256_unpacklo_epi16(two, next), _mm256_unpackhi_epi16(two, next)};
}

// sum + the products of four probabilities with their tokens' values.
[[gnu::always_inline]] inline __m256i add_products_of(__m256i four, __m256i values, __m256i sum) {
  const __m256i ones = _mm256_set1_epi16(1);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(four, values), ones));
}

// The probabilities of four tokens, in every lane.
[[gnu::always_inline]] inline __m256i load_four(const std::uint8_t* p) {
  std::int32_t four = 0;
  std::memcpy(&four, p, sizeof(four));
  return _mm256_set1_epi32(four);
}

// out <- out * rescale + sum * factor, eight channels.
[[gnu::always_inline]] inline void add_scaled(__m256i sum, __m256 factor, float rescale,
                                              float* out) {
  const __m256 kept = _mm256_mul_ps(_mm256_loadu_ps(out), _mm256_set1_ps(rescale));
  _mm256_storeu_ps(out, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), factor, kept));
}

// Adds four tokens to the sums of kRows rows; `p` is [row, 64], at the first token.
template <int kRows>
[[gnu::always_inline]] inline void add_token_quad(const TokenQuad& values, const std::uint8_t* p,
                                                  __m256i (&sums)[kRows][2]) {
  for (int r = 0; r < kRows; r++) {
    const __m256i four = load_four(p + r * kBlockCells);
    __m256i first = add_products_of(four, values.first, sums[r][0]);
    __m256i second = add_products_of(four, values.second, sums[r][1]);
    // One row after the other: gcc 12 multiplies all rows first, runs out of registers and keeps
    // sums on the stack.
    asm("" : "+x"(first), "+x"(second));
    sums[r][0] = first;
    sums[r][1] = second;
  }
}

// Sums over one block to the outputs of kRows rows and sixteen channels.
template <int kRows>
[[gnu::always_inline]] inline void add_to_out(const AccumulateCodes& call,
                                              const __m256i (&sums)[kRows][2], int block,
                                              int first_row, int channel) {
  const std::size_t row = static_cast<std::size_t>(block) * call.n_rows + first_row;
  for (int r = 0; r < kRows; r++) {
    const __m256 weight = _mm256_set1_ps(call.weights[row + r]);
    const __m256i in_order[2] = {_mm256_permute2x128_si256(sums[r][0], sums[r][1], 0x20),
                                 _mm256_permute2x128_si256(sums[r][0], sums[r][1], 0x31)};
    for (int v = 0; v < 2; v++) {
      float* out = call.out + (first_row + r) * call.out_stride + channel + v * 8;
      const __m256 factor = _mm256_mul_ps(weight, _mm256_loadu_ps(call.scales + channel + v * 8));
      add_scaled(in_order[v], factor, call.rescale[row + r], out);
    }
  }
}

template <int kRows>
inline void accumulate_tile(const AccumulateCodes& call, const TokenQuad* values, int block,
                            int first_row, int channel) {
  const std::uint8_t* p =
      call.p + (static_cast<std::size_t>(block) * call.n_rows + first_row) * kBlockCells;
  __m256i sums[kRows][2] = {};
  for (int i = 0; i < kBlockCells / 4; i++) {
    add_token_quad(values[i], p + 4 * i, sums);
  }
  add_to_out(call, sums, block, first_row, channel);
}

// All blocks, sixteen channels: their tables stay in the cache.
using AccumulateSlices = void (*)(const AccumulateCodes&, int);

// Few rows: values are multiplied as they are decoded.
template <int kDim, typename Code, int kRows>
void accumulate_few(const AccumulateCodes& call, int channel) {
  const std::uint8_t* p = call.p;
  for (int block = 0; block < call.blocks.n_blocks; block++, p += kRows * kBlockCells) {
    const SliceSource<kDim, Code> low(call.blocks, block, channel);
    const SliceSource<kDim, Code> high(call.blocks, block, channel + kSlice);
    prefetch_codes(high.codes[high.kGroups - 1] + kBlockCells, 2 * high.kGroups);
    __m256i sums[kRows][2] = {};
    for (int t = 0; t < kBlockCells; t += 4) {
      add_token_quad(load_token_quad(low, high, t), p + t, sums);
    }
    add_to_out(call, sums, block, 0, channel);
  }
}

// Eight channels of one block; `p`, `weights` and `rescale` are the block's.
template <int kRows, typename Source>
[[gnu::always_inline]] inline void accumulate_slice(const Source& source, const std::uint8_t* p,
                                                    const float* weights, const float* rescale,
                                                    __m256 scales, float* out,
                                                    std::size_t out_stride) {
  __m256i sums[kRows] = {};
  for (int t = 0; t < kBlockCells; t += 4) {
    const __m128i two = _mm_unpacklo_epi8(source.row(t), source.row(t + 1));
    const __m128i next = _mm_unpacklo_epi8(source.row(t + 2), source.row(t + 3));
    const __m256i values = join(_mm_unpacklo_epi16(two, next), _mm_unpackhi_epi16(two, next));
    for (int r = 0; r < kRows; r++) {
      __m256i sum = add_products_of(load_four(p + r * kBlockCells + t), values, sums[r]);
      asm("" : "+x"(sum));  // as in add_token_quad
      sums[r] = sum;
    }
  }
  for (int r = 0; r < kRows; r++, out += out_stride) {
    add_scaled(sums[r], _mm256_mul_ps(_mm256_set1_ps(weights[r]), scales), rescale[r], out);
  }
}

// Up to eight rows: their sums of eight channels fill as many registers.
template <int kDim, typename Code, int kRows>
void accumulate_eight(const AccumulateCodes& call, int channel) {
  for (int end = channel + 2 * kSlice; channel < end; channel += kSlice) {
    const __m256 scales = _mm256_loadu_ps(call.scales + channel);
    for (int block = 0; block < call.blocks.n_blocks; block++) {
      const std::size_t row = static_cast<std::size_t>(block) * kRows;
      accumulate_slice<kRows>(SliceSource<kDim, Code>(call.blocks, block, channel),
                              call.p + row * kBlockCells, call.weights + row, call.rescale + row,
                              scales, call.out + channel, call.out_stride);
    }
  }
}

template <int kDim, typename Code>
void accumulate_block(const AccumulateCodes& call, int block, int channel) {
  const SliceSource<kDim, Code> low(call.blocks, block, channel);
  const SliceSource<kDim, Code> high(call.blocks, block, channel + kSlice);
  TokenQuad values[kBlockCells / 4];
  for (int i = 0; i < kBlockCells / 4; i++) {
    values[i] = load_token_quad(low, high, 4 * i);
  }
  int row = 0;
  for (; row + kValueRows <= call.n_rows; row += kValueRows) {
    accumulate_tile<kValueRows>(call, values, block, row, channel);
  }
  switch (call.n_rows - row) {
    case 1:
      return accumulate_tile<1>(call, values, block, row, channel);
    case 2:
      return accumulate_tile<2>(call, values, block, row, channel);
    case 3:
      return accumulate_tile<3>(call, values, block, row, channel);
    default:
      return;
  }
}

template <int kDim, typename Code>
void accumulate_many(const AccumulateCodes& call, int channel) {
  for (int block = 0; block < call.blocks.n_blocks; block++) {
    accumulate_block<kDim, Code>(call, block, channel);
  }
}

template <int kDim, typename Code>
inline AccumulateSlices accumulator_of(int n_rows) {
  switch (n_rows) {
    case 1:
      return accumulate_few<kDim, Code, 1>;
    case 2:
      return accumulate_few<kDim, Code, 2>;
    case 3:
      return accumulate_few<kDim, Code, 3>;
    case 4:
      return accumulate_few<kDim, Code, 4>;
    case 5:
      return accumulate_eight<kDim, Code, 5>;
    case 6:
      return accumulate_eight<kDim, Code, 6>;
    case 7:
      return accumulate_eight<kDim, Code, 7>;
    case kMaxFewRows:
      return accumulate_eight<kDim, Code, kMaxFewRows>;
    default:
      return accumulate_many<kDim, Code>;
  }
}

template <typename Code>
inline AccumulateSlices accumulator_for(const AccumulateCodes& call) {
  switch (call.blocks.group_dim) {
    case 1:
      return accumulate_many<1, Code>;
    case 2:
      return accumulator_of<2, Code>(call.n_rows);
    case 4:
      return accumulator_of<4, Code>(call.n_rows);
    case 8:
      return accumulator_of<8, Code>(call.n_rows);
    default:
      return accumulate_many<16, Code>;
  }
}

void accumulate_codes(const AccumulateCodes& call) noexcept {
  const CodedBlocks& blocks = call.blocks;
  const AccumulateSlices accumulate = blocks.code_bits <= 8 ? accumulator_for<std::uint8_t>(call)
                                                            : accumulator_for<std::uint16_t>(call);
  for (int channel = 0; channel < blocks.n_channels; channel += 2 * kSlice) {
    accumulate(call, channel);
  }
}

}  // namespace
}  // namespace cqkv::kernels
