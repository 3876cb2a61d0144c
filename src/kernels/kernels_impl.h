// All kernels, written once over a vector of kLanes floats. Each per-instruction-
// set file defines, in an anonymous namespace, what differs, then includes this:
//
//     constexpr int kLanes;            4, 8 or 16
//     Vec                              kLanes floats, the compiler's vector extension
//     multiply_add(Vec a, b, c)        a b + c, rounded once or twice
//     widen_halves(in, n, out)         half to float
//
// Not a header in the usual sense: everything is in an anonymous namespace and
// compiled with the flags of the including file. No standard containers and no
// inline functions of others, which the linker could share with baseline code.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/kernel_table.h"

namespace cqkv::kernels {
namespace {

// The same bytes at any address, and integers of the same width.
using VecAt = float __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
using IntVec = std::int32_t __attribute__((vector_size(kLanes * 4)));
// For transposition: four channels of one token or of two, whatever kLanes is.
using Vec4 = float __attribute__((vector_size(16)));
using Vec4At = float __attribute__((vector_size(16), aligned(4), may_alias));
using Vec8 = float __attribute__((vector_size(32)));
using Vec8At = float __attribute__((vector_size(32), aligned(4), may_alias));

constexpr float kInfinity = __builtin_inff();
// Rows that one pass of the matrix kernel takes: accumulators must fit the registers.
constexpr int kRowTile = 6;
// Vectors of columns of one pass: wide registers come in twice the number.
constexpr int kColumnVecs = kLanes == 16 ? 4 : 2;

inline Vec load(const float* at) {
  return *reinterpret_cast<const VecAt*>(at);
}

inline void store(float* at, Vec value) {
  *reinterpret_cast<VecAt*>(at) = value;
}

inline Vec4 load4(const float* at) {
  return *reinterpret_cast<const Vec4At*>(at);
}

inline void store4(float* at, Vec4 value) {
  *reinterpret_cast<Vec4At*>(at) = value;
}

inline Vec splat(float value) {
  return value - Vec{};
}

inline Vec select(IntVec mask, Vec yes, Vec no) {
  return __builtin_bit_cast(
      Vec, (mask & __builtin_bit_cast(IntVec, yes)) | (~mask & __builtin_bit_cast(IntVec, no)));
}

inline Vec larger(Vec a, Vec b) {
  return a > b ? a : b;
}

// ---------------------------------------------------------------- encoding

// The lowest index of the smallest distance; lane i of `index` ascends with the scan.
inline int best_lane(Vec distance, IntVec index) {
  float best = distance[0];
  int best_index = index[0];
  for (int lane = 1; lane < kLanes; lane++) {
    if (distance[lane] < best || (distance[lane] == best && index[lane] < best_index)) {
      best = distance[lane];
      best_index = index[lane];
    }
  }
  return best_index;
}

template <int kRows>
inline void encode_rows(const float* table, int group_dim, int n_padded, const float* rows,
                        std::size_t row_stride, std::uint16_t* codes, std::size_t code_stride) {
  IntVec index = {};
  for (int lane = 0; lane < kLanes; lane++) {
    index[lane] = lane;
  }
  Vec best[kRows];
  IntVec best_index[kRows];
  for (int r = 0; r < kRows; r++) {
    best[r] = splat(kInfinity);
    best_index[r] = index;
  }
  for (int i = 0; i < n_padded; i += kLanes, index += kLanes) {
    Vec distance[kRows] = {};
    for (int j = 0; j < group_dim; j++) {
      const Vec centroids = load(table + static_cast<std::size_t>(j) * n_padded + i);
      for (int r = 0; r < kRows; r++) {
        const Vec difference = rows[r * row_stride + j] - centroids;
        distance[r] = multiply_add(difference, difference, distance[r]);
      }
    }
    for (int r = 0; r < kRows; r++) {
      const IntVec closer = distance[r] < best[r];
      best[r] = closer ? distance[r] : best[r];
      best_index[r] = closer ? index : best_index[r];
    }
  }
  for (int r = 0; r < kRows; r++) {
    codes[r * code_stride] = static_cast<std::uint16_t>(best_lane(best[r], best_index[r]));
  }
}

void encode_group(const float* table, int group_dim, int n_padded, const float* rows,
                  std::size_t row_stride, std::size_t n_rows, std::uint16_t* codes,
                  std::size_t code_stride) noexcept {
  constexpr int kRows = 4;
  std::size_t r = 0;
  for (; r + kRows <= n_rows; r += kRows) {
    encode_rows<kRows>(table, group_dim, n_padded, rows + r * row_stride, row_stride,
                       codes + r * code_stride, code_stride);
  }
  for (; r < n_rows; r++) {
    encode_rows<1>(table, group_dim, n_padded, rows + r * row_stride, row_stride,
                   codes + r * code_stride, code_stride);
  }
}

// ---------------------------------------------------------------- decoding

// Stores four channels of four tokens, given as rows of four channels.
inline void transpose4(Vec4 a, Vec4 b, Vec4 c, Vec4 d, float* tile, std::size_t n_channels) {
  const Vec4 ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Vec4 ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Vec4 cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Vec4 cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Vec4 out[4] = {__builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5),
                       __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
                       __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5),
                       __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
  for (std::size_t j = 0; j < n_channels; j++) {
    store4(tile + j * kBlockCells, out[j]);
  }
}

// Tokens that are transposed together. (A Vec8 must not be passed by value: the
// baseline has no registers for it.)
constexpr int kCornerTokens = kLanes >= 8 ? 8 : 4;

// Stores channels j to j + 3 of kTokens tokens, given where their rows begin.
template <int kTokens>
inline void store_corner(const float* const* rows, int j, float* tile) {
  if constexpr (kTokens == 4) {
    transpose4(load4(rows[0] + j), load4(rows[1] + j), load4(rows[2] + j), load4(rows[3] + j), tile,
               4);
  } else {
    // Token t in the lower half, token t + 4 in the upper: both halves go the same way.
    Vec8 both[4];
    for (int t = 0; t < 4; t++) {
      both[t] = __builtin_shufflevector(load4(rows[t] + j), load4(rows[t + 4] + j), 0, 1, 2, 3, 4,
                                        5, 6, 7);
    }
    const Vec8 ab_low = __builtin_shufflevector(both[0], both[1], 0, 8, 1, 9, 4, 12, 5, 13);
    const Vec8 ab_high = __builtin_shufflevector(both[0], both[1], 2, 10, 3, 11, 6, 14, 7, 15);
    const Vec8 cd_low = __builtin_shufflevector(both[2], both[3], 0, 8, 1, 9, 4, 12, 5, 13);
    const Vec8 cd_high = __builtin_shufflevector(both[2], both[3], 2, 10, 3, 11, 6, 14, 7, 15);
    const Vec8 out[4] = {__builtin_shufflevector(ab_low, cd_low, 0, 1, 8, 9, 4, 5, 12, 13),
                         __builtin_shufflevector(ab_low, cd_low, 2, 3, 10, 11, 6, 7, 14, 15),
                         __builtin_shufflevector(ab_high, cd_high, 0, 1, 8, 9, 4, 5, 12, 13),
                         __builtin_shufflevector(ab_high, cd_high, 2, 3, 10, 11, 6, 7, 14, 15)};
    for (int i = 0; i < 4; i++) {
      *reinterpret_cast<Vec8At*>(tile + i * kBlockCells) = out[i];
    }
  }
}

// Channels in fours: group_dim 4, 8 and 16.
template <int kDim>
inline void decode_channels_by4(const float* centroids, const std::uint16_t* codes, float* tile) {
  for (int t = 0; t < kBlockCells; t += kCornerTokens) {
    const float* rows[kCornerTokens];
    for (int i = 0; i < kCornerTokens; i++) {
      rows[i] = centroids + static_cast<std::size_t>(codes[t + i]) * kDim;
    }
    for (int j = 0; j < kDim; j += 4) {
      store_corner<kCornerTokens>(rows, j, tile + static_cast<std::size_t>(j) * kBlockCells + t);
    }
  }
}

// Two channels: a pair is moved as one 64-bit word.
inline void decode_channels_by2(const float* centroids, const std::uint16_t* codes, float* tile) {
  using Words = double __attribute__((vector_size(16)));
  for (int t = 0; t < kBlockCells; t += 4) {
    double pair[4];
    for (int i = 0; i < 4; i++) {
      std::memcpy(&pair[i], centroids + static_cast<std::size_t>(codes[t + i]) * 2, sizeof(double));
    }
    const Vec4 first = __builtin_bit_cast(Vec4, Words{pair[0], pair[1]});
    const Vec4 second = __builtin_bit_cast(Vec4, Words{pair[2], pair[3]});
    store4(tile + t, __builtin_shufflevector(first, second, 0, 2, 4, 6));
    store4(tile + kBlockCells + t, __builtin_shufflevector(first, second, 1, 3, 5, 7));
  }
}

void decode_channels(const float* centroids, int group_dim, const std::uint16_t* codes,
                     float* tile) noexcept {
  switch (group_dim) {
    case 1:
      for (int t = 0; t < kBlockCells; t++) {
        tile[t] = centroids[codes[t]];
      }
      return;
    case 2:
      return decode_channels_by2(centroids, codes, tile);
    case 4:
      return decode_channels_by4<4>(centroids, codes, tile);
    case 8:
      return decode_channels_by4<8>(centroids, codes, tile);
    default:
      return decode_channels_by4<16>(centroids, codes, tile);
  }
}

template <int kDim>
inline void copy_centroids(const float* centroids, const std::uint16_t* codes, float* tile,
                           std::size_t stride) {
  for (int t = 0; t < kBlockCells; t++) {
    std::memcpy(tile + t * stride, centroids + static_cast<std::size_t>(codes[t]) * kDim,
                kDim * sizeof(float));
  }
}

void decode_tokens(const float* centroids, int group_dim, const std::uint16_t* codes, float* tile,
                   std::size_t stride) noexcept {
  switch (group_dim) {
    case 1:
      return copy_centroids<1>(centroids, codes, tile, stride);
    case 2:
      return copy_centroids<2>(centroids, codes, tile, stride);
    case 4:
      return copy_centroids<4>(centroids, codes, tile, stride);
    case 8:
      return copy_centroids<8>(centroids, codes, tile, stride);
    default:
      return copy_centroids<16>(centroids, codes, tile, stride);
  }
}

void transpose_rows(const float* rows, std::size_t stride, int n_channels, float* tile) noexcept {
  const int n_corners = n_channels / 4;
  for (int t = 0; t < kBlockCells; t += kCornerTokens) {
    const float* corner[kCornerTokens];
    for (int i = 0; i < kCornerTokens; i++) {
      corner[i] = rows + (t + i) * stride;
    }
    for (int j = 0; j < n_corners * 4; j += 4) {
      store_corner<kCornerTokens>(corner, j, tile + static_cast<std::size_t>(j) * kBlockCells + t);
    }
  }
  for (int j = n_corners * 4; j < n_channels; j++) {
    for (int t = 0; t < kBlockCells; t++) {
      tile[static_cast<std::size_t>(j) * kBlockCells + t] = rows[t * stride + j];
    }
  }
}

// ---------------------------------------------------------------- rotation

// Four pairs of four tokens: one 4 x 4 corner of the two output tables.
inline void combine_corner(const float* const* low, const float* const* high, std::size_t n_padded,
                           int first, int n_pairs, float* cosines, float* sines) {
  Vec4 cosine[4];
  Vec4 sine[4];
  for (int t = 0; t < 4; t++) {
    const Vec4 low_cos = load4(low[t] + first);
    const Vec4 low_sin = load4(low[t] + n_padded + first);
    const Vec4 high_cos = load4(high[t] + first);
    const Vec4 high_sin = load4(high[t] + n_padded + first);
    cosine[t] = high_cos * low_cos - high_sin * low_sin;
    sine[t] = high_sin * low_cos + high_cos * low_sin;
  }
  const int n = n_pairs - first < 4 ? n_pairs - first : 4;
  transpose4(cosine[0], cosine[1], cosine[2], cosine[3], cosines, static_cast<std::size_t>(n));
  transpose4(sine[0], sine[1], sine[2], sine[3], sines, static_cast<std::size_t>(n));
}

void combine_angles(const float* const* low, const float* const* high, int n_pairs, float* cosines,
                    float* sines) noexcept {
  const auto n_padded =
      static_cast<std::size_t>((n_pairs + kPairLanes - 1) / kPairLanes * kPairLanes);
  for (int t = 0; t < kBlockCells; t += 4) {
    for (int i = 0; i < n_pairs; i += 4) {
      const std::size_t at = static_cast<std::size_t>(i) * kBlockCells + t;
      combine_corner(low + t, high + t, n_padded, i, n_pairs, cosines + at, sines + at);
    }
  }
}

// The same sums as above, eight or sixteen tokens at a time.
void combine_run(const float* low, const float* high, int n_pairs, float* cosines,
                 float* sines) noexcept {
  const auto n_padded =
      static_cast<std::size_t>((n_pairs + kPairLanes - 1) / kPairLanes * kPairLanes);
  const float* low_sines = low + static_cast<std::size_t>(n_pairs) * kBlockCells;
  for (int i = 0; i < n_pairs; i++) {
    const Vec high_cos = splat(high[i]);
    const Vec high_sin = splat(high[n_padded + i]);
    for (int t = 0; t < kBlockCells; t += kLanes) {
      const std::size_t at = static_cast<std::size_t>(i) * kBlockCells + t;
      const Vec low_cos = load(low + at);
      const Vec low_sin = load(low_sines + at);
      store(cosines + at, high_cos * low_cos - high_sin * low_sin);
      store(sines + at, high_sin * low_cos + high_cos * low_sin);
    }
  }
}

void rotate_pairs(float* tile, int n_pairs, int pair_step, int partner, const float* cosines,
                  const float* sines) noexcept {
  for (int i = 0; i < n_pairs; i++) {
    float* x = tile + static_cast<std::size_t>(i) * pair_step * kBlockCells;
    float* y = x + static_cast<std::size_t>(partner) * kBlockCells;
    const std::size_t row = static_cast<std::size_t>(i) * kBlockCells;
    for (int t = 0; t < kBlockCells; t += kLanes) {
      const Vec cosine = load(cosines + row + t);
      const Vec sine = load(sines + row + t);
      const Vec a = load(x + t);
      const Vec b = load(y + t);
      store(x + t, multiply_add(a, cosine, -(b * sine)));
      store(y + t, multiply_add(a, sine, b * cosine));
    }
  }
}

// ---------------------------------------------------------------- scores and values

// The operands of c = c * rescale + a b, or of c = a b where `rescale` is null;
// strides in floats.
struct Product {
  const float* a;
  std::size_t a_stride;
  const float* b;
  std::size_t b_stride;
  int depth;
  const float* rescale;
  float* c;
  std::size_t c_stride;
};

// kRows rows by kVecs vectors of columns, accumulators in registers. Every element
// is one chain of multiply-adds over ascending depth, whatever the tile.
template <int kRows, int kVecs, bool kCarry>
inline void multiply_tile(const Product& p, int row, int column) {
  const float* a = p.a + row * p.a_stride;
  const float* b = p.b + column;
  float* c = p.c + row * p.c_stride + column;
  Vec sum[kRows][kVecs];
  for (int r = 0; r < kRows; r++) {
    for (int v = 0; v < kVecs; v++) {
      sum[r][v] = kCarry ? load(c + r * p.c_stride + v * kLanes) * p.rescale[row + r] : Vec{};
    }
  }
  for (int k = 0; k < p.depth; k++) {
    Vec columns[kVecs];
    for (int v = 0; v < kVecs; v++) {
      columns[v] = load(b + v * kLanes);
    }
    for (int r = 0; r < kRows; r++) {
      const Vec factor = splat(a[r * p.a_stride + k]);
      for (int v = 0; v < kVecs; v++) {
        sum[r][v] = multiply_add(factor, columns[v], sum[r][v]);
      }
    }
    b += p.b_stride;
  }
  for (int r = 0; r < kRows; r++) {
    for (int v = 0; v < kVecs; v++) {
      store(c + r * p.c_stride + v * kLanes, sum[r][v]);
    }
  }
}

// Rows are taken in nearly equal tiles: 8 as 4 + 4 rather than 6 + 2.
template <int kVecs, bool kCarry>
inline void multiply_columns(const Product& p, int n_rows, int column) {
  for (int row = 0; row < n_rows;) {
    const int left = n_rows - row;
    const int take = left >= 2 * kRowTile ? kRowTile : left > kRowTile ? (left + 1) / 2 : left;
    switch (take) {
      case 1:
        multiply_tile<1, kVecs, kCarry>(p, row, column);
        break;
      case 2:
        multiply_tile<2, kVecs, kCarry>(p, row, column);
        break;
      case 3:
        multiply_tile<3, kVecs, kCarry>(p, row, column);
        break;
      case 4:
        multiply_tile<4, kVecs, kCarry>(p, row, column);
        break;
      case 5:
        multiply_tile<5, kVecs, kCarry>(p, row, column);
        break;
      default:
        multiply_tile<kRowTile, kVecs, kCarry>(p, row, column);
        break;
    }
    row += take;
  }
}

// n_columns is a multiple of 16 floats. Few rows take twice the columns at a time, or
// the multiply-adds would wait for each other.
template <bool kCarry>
inline void multiply_rows(const Product& p, int n_rows, int n_columns) {
  int column = 0;
  if (kLanes != 16 && n_rows <= 3) {
    for (; column + 4 * kLanes <= n_columns; column += 4 * kLanes) {
      multiply_columns<4, kCarry>(p, n_rows, column);
    }
  }
  for (; column + kColumnVecs * kLanes <= n_columns; column += kColumnVecs * kLanes) {
    multiply_columns<kColumnVecs, kCarry>(p, n_rows, column);
  }
  for (; column < n_columns; column += kLanes) {
    multiply_columns<1, kCarry>(p, n_rows, column);
  }
}

void score_rows(const float* queries, std::size_t query_stride, int n_rows, int head_dim,
                const float* keys, float* scores) noexcept {
  const Product product = {queries,  query_stride, keys,   kBlockCells,
                           head_dim, nullptr,      scores, kBlockCells};
  multiply_rows<false>(product, n_rows, kBlockCells);
}

void accumulate_rows(const float* p, int n_rows, const float* values, std::size_t value_stride,
                     int n_channels, const float* rescale, float* out,
                     std::size_t out_stride) noexcept {
  const Product product = {p,           kBlockCells, values, value_stride,
                           kBlockCells, rescale,     out,    out_stride};
  multiply_rows<true>(product, n_rows, n_channels);
}

// ---------------------------------------------------------------- softmax

// e^x for x <= 0 and -inf: at most 2 ulp off, exactly 1 at 0, and 0 where e^x is
// no normal number. Reduction to |r| <= ln 2 / 2 and the polynomial of Cephes' expf.
inline Vec exp_negative(Vec x) {
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const IntVec vanishes = x < -87.33654F;
  const Vec clamped = larger(x, splat(-87.33654F));
  const Vec shifted = multiply_add(clamped, splat(1.44269504F), splat(kRound));
  const Vec n = shifted - kRound;
  Vec r = multiply_add(n, splat(-0.693359375F), clamped);
  r = multiply_add(n, splat(2.12194440e-4F), r);
  Vec p = splat(1.9875691500e-4F);
  p = multiply_add(p, r, splat(1.3981999507e-3F));
  p = multiply_add(p, r, splat(8.3334519073e-3F));
  p = multiply_add(p, r, splat(4.1665795894e-2F));
  p = multiply_add(p, r, splat(1.6666665459e-1F));
  p = multiply_add(p, r, splat(5.0000001201e-1F));
  p = multiply_add(p, r * r, r) + 1.0F;
  // n <= 0 stands in the low bits of `shifted`; moved to the exponent it scales by 2^n.
  const Vec scaled = __builtin_bit_cast(
      Vec, __builtin_bit_cast(IntVec, p) + (__builtin_bit_cast(IntVec, shifted) << 23));
  return select(vanishes, Vec{}, scaled);
}

inline float exp_negative(float x) {
  return exp_negative(splat(x))[0];
}

// Sixteen partial sums, one for each t modulo 16, added pairwise: the same at every level.
inline float sum_in_order(const Vec* partial) {
  float sums[kChannelLanes];
  std::memcpy(sums, partial, sizeof(sums));
  Vec4 four = (load4(sums) + load4(sums + 8)) + (load4(sums + 4) + load4(sums + 12));
  four += __builtin_shufflevector(four, four, 2, 3, 0, 1);
  return four[0] + four[1];
}

inline float largest_lane(Vec top) {
  float lanes[kLanes];
  std::memcpy(lanes, &top, sizeof(lanes));
  Vec4 four = load4(lanes);
  for (int lane = 4; lane < kLanes; lane += 4) {
    const Vec4 next = load4(lanes + lane);
    four = next > four ? next : four;
  }
  const Vec4 swapped = __builtin_shufflevector(four, four, 2, 3, 0, 1);
  four = swapped > four ? swapped : four;
  return four[0] > four[1] ? four[0] : four[1];
}

// One row; returns the sum of its exponentials.
inline float softmax_row(float* scores, float scale, const float* mask, float* maximum,
                         float* rescale) {
  constexpr int kVecs = kBlockCells / kLanes;
  Vec score[kVecs];
  Vec top = splat(-kInfinity);
  for (int v = 0; v < kVecs; v++) {
    score[v] = multiply_add(load(scores + v * kLanes), splat(scale), load(mask + v * kLanes));
    top = larger(score[v], top);
  }
  const float before = *maximum;
  const float largest = largest_lane(top);
  const float now = largest > before ? largest : before;
  // The usual case is no new maximum, and exp(0) is 1; so it is where nothing is seen yet.
  *rescale = now > before ? exp_negative(before - now) : 1.0F;
  *maximum = now;
  // Where nothing is seen yet, -inf - 0 gives zeros where -inf - -inf would not.
  const Vec origin = splat(now > -kInfinity ? now : 0.0F);
  constexpr int kPartials = kChannelLanes / kLanes;
  Vec partial[kPartials] = {};
  for (int v = 0; v < kVecs; v++) {
    const Vec p = exp_negative(score[v] - origin);
    store(scores + v * kLanes, p);
    partial[v % kPartials] += p;
  }
  return sum_in_order(partial);
}

void softmax_rows(float* scores, int n_rows, float scale, const float* mask, int rows_per_mask,
                  float* maxima, float* sums, float* rescale) noexcept {
  for (int r = 0; r < n_rows; r++) {
    const float* row_mask = mask + static_cast<std::size_t>(r / rows_per_mask) * kBlockCells;
    const float sum = softmax_row(scores + static_cast<std::size_t>(r) * kBlockCells, scale,
                                  row_mask, maxima + r, rescale + r);
    sums[r] = sums[r] * rescale[r] + sum;
  }
}

void merge_rows(const float* part_maxima, const float* part_sums, const float* part_out, int n_rows,
                int n_channels, float* maxima, float* sums, float* out) noexcept {
  for (int r = 0; r < n_rows; r++) {
    if (!(part_maxima[r] > -kInfinity)) {
      continue;
    }
    const float now = part_maxima[r] > maxima[r] ? part_maxima[r] : maxima[r];
    const float keep = exp_negative(maxima[r] - now);
    const float add = exp_negative(part_maxima[r] - now);
    maxima[r] = now;
    sums[r] = sums[r] * keep + part_sums[r] * add;
    const std::size_t row = static_cast<std::size_t>(r) * n_channels;
    for (int d = 0; d < n_channels; d += kLanes) {
      store(out + row + d,
            multiply_add(load(part_out + row + d), splat(add), load(out + row + d) * keep));
    }
  }
}

void half_to_float_n(const std::uint16_t* in, std::size_t n, float* out) noexcept {
  widen_halves(in, n, out);
}

constexpr KernelTable make_table(const char* name) {
  return {name,           encode_group,   decode_channels, decode_tokens,
          transpose_rows, combine_angles, combine_run,     rotate_pairs,
          score_rows,     softmax_rows,   accumulate_rows, merge_rows,
          half_to_float_n};
}

}  // namespace
}  // namespace cqkv::kernels
