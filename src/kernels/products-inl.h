// Scores and weighted sums of values in floats: products of a few rows with a block, whose sums
// stay in registers. Those of bytes are the integer kernels' (integer_*-inl.h).
#pragma once

#include <cstddef>

#include "kernels/coded_blocks.h"
#include "kernels/simd-inl.h"
#include "kernels/vec-inl.h"

namespace cqkv::kernels {
namespace {

// Rows that one pass of the matrix kernel takes: accumulators must fit the registers.
constexpr int kRowTile = 6;
// Vectors of columns of one pass: wide registers come in twice the number.
constexpr int kColumnVecs = kLanes == 16 ? 4 : 2;

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

}  // namespace
}  // namespace cqkv::kernels
