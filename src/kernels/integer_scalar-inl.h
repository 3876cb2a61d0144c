// The integer kernels in plain loops: their specification in code, which the compiler turns
// into whatever the baseline has. Those that are one text for all levels are not here:
// softmax_bytes, gather_codes, rotate_queries (make_table-inl.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/coded_blocks.h"
#include "kernels/float_constants.h"
#include "kernels/integer_kernels.h"
#include "kernels/simd_scalar-inl.h"

namespace cqkv::kernels {
namespace {

// Scores under way stand where the floats will be.
typedef std::int32_t Int32At __attribute__((may_alias));

// One channel of one block.
inline void decode_channel(const CodedBlocks& blocks, int block, int channel, std::int8_t* out) {
  const int group = channel / blocks.group_dim;
  const std::int8_t* table = blocks.table +
                             group * table_entries(blocks.code_bits) * blocks.group_dim +
                             channel % blocks.group_dim;
  const std::size_t first = static_cast<std::size_t>(group) * kBlockCells;
  if (blocks.code_bits <= 8) {
    const std::uint8_t* codes = blocks.codes[block] + first;
    for (int t = 0; t < kBlockCells; t++) {
      out[t] = table[static_cast<std::size_t>(codes[t]) * blocks.group_dim];
    }
  } else {
    const auto* codes = reinterpret_cast<const std::uint16_t*>(blocks.codes[block]) + first;
    for (int t = 0; t < kBlockCells; t++) {
      out[t] = table[static_cast<std::size_t>(codes[t]) * blocks.group_dim];
    }
  }
}

// x' and y' of one pair of one block.
inline void rotate_pair(const ScoreCodes& call, int block, int pair, std::int16_t* x_out,
                        std::int16_t* y_out) {
  std::int8_t x[kBlockCells];
  std::int8_t y[kBlockCells];
  decode_channel(call.blocks, block, call.pairs[pair].x, x);
  decode_channel(call.blocks, block, call.pairs[pair].y, y);
  if (pair >= call.n_rotated) {
    for (int t = 0; t < kBlockCells; t++) {
      x_out[t] = static_cast<std::int16_t>(x[t] * 32);
      y_out[t] = static_cast<std::int16_t>(y[t] * 32);
    }
    return;
  }
  const std::int16_t* cosines = call.rotation + static_cast<std::size_t>(pair) * 2 * kBlockCells;
  const std::int16_t* sines = cosines + kBlockCells;
  for (int t = 0; t < kBlockCells; t++) {
    const int a = x[t] * 256;
    const int b = y[t] * 256;
    x_out[t] = static_cast<std::int16_t>(multiply_high(a, cosines[t]) - multiply_high(b, sines[t]));
    y_out[t] = static_cast<std::int16_t>(multiply_high(a, sines[t]) + multiply_high(b, cosines[t]));
  }
}

// Adds the products of one pair of all tokens to the sums of a row.
inline void add_pair(std::uint32_t query, const std::int16_t* x, const std::int16_t* y,
                     Int32At* sums) {
  const auto qx = static_cast<std::int16_t>(query);
  const auto qy = static_cast<std::int16_t>(query >> 16U);
  for (int t = 0; t < kBlockCells; t++) {
    sums[t] += qx * x[t] + qy * y[t];
  }
}

void score_codes(const ScoreCodes& call) noexcept {
  std::int16_t x[kBlockCells];
  std::int16_t y[kBlockCells];
  const int row_words = call.n_rows * kBlockCells;
  for (int block = 0; block < call.blocks.n_blocks; block++) {
    float* scores = call.scores + static_cast<std::size_t>(block) * row_words;
    auto* sums = reinterpret_cast<Int32At*>(scores);
    for (int i = 0; i < row_words; i++) {
      sums[i] = 0;
    }
    for (int pair = 0; pair < call.n_pairs; pair++) {
      rotate_pair(call, block, pair, x, y);
      for (int r = 0; r < call.n_rows; r++) {
        add_pair(call.queries[block][r * call.query_stride + pair], x, y,
                 sums + static_cast<std::size_t>(r) * kBlockCells);
      }
    }
    for (int i = 0; i < row_words; i++) {
      scores[i] = static_cast<float>(sums[i]) * call.factors[i / kBlockCells];
    }
  }
}

inline int sum_products(const std::uint8_t* p, const std::int8_t* values) {
  int sum = 0;
  for (int t = 0; t < kBlockCells; t++) {
    sum += p[t] * values[t];
  }
  return sum;
}

void accumulate_codes(const AccumulateCodes& call) noexcept {
  std::int8_t values[kBlockCells];
  for (int block = 0; block < call.blocks.n_blocks; block++) {
    for (int d = 0; d < call.blocks.n_channels; d++) {
      decode_channel(call.blocks, block, d, values);
      for (int r = 0; r < call.n_rows; r++) {
        const std::size_t row = static_cast<std::size_t>(block) * call.n_rows + r;
        const int sum = sum_products(call.p + row * kBlockCells, values);
        float* out = call.out + r * call.out_stride + d;
        *out = *out * call.rescale[row] +
               static_cast<float>(sum) * (call.weights[row] * call.scales[d]);
      }
    }
  }
}

// [pair, cosines or sines, token]
void pack_angles(const float* cosines, const float* sines, int n_pairs, float factor,
                 std::int16_t* packed) noexcept {
  for (int i = 0; i < n_pairs; i++) {
    for (int which = 0; which < 2; which++) {
      const float* values = which == 0 ? cosines : sines;
      for (int t = 0; t < kBlockCells; t++) {
        const float shifted = values[i * kBlockCells + t] * factor + kRound;
        *packed++ = static_cast<std::int16_t>(__builtin_bit_cast(std::int32_t, shifted));
      }
    }
  }
}

constexpr IntegerKernels kScalarIntegerKernels = {.table_order = TableOrder::kByCode,
                                                  .max_code_bits = 12,
                                                  .pack_angles = pack_angles,
                                                  .score_codes = score_codes,
                                                  .accumulate_codes = accumulate_codes};

}  // namespace
}  // namespace cqkv::kernels
