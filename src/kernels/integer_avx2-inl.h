// The integer kernels for AVX2, of which the parts are in avx2_*-inl.h. The AVX-512 level without
// VBMI uses them too. Here is only which part serves a call, and what the table gets.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/avx2_angles-inl.h"
#include "kernels/avx2_rows-inl.h"
#include "kernels/avx2_tile_scores-inl.h"
#include "kernels/avx2_token_scores-inl.h"
#include "kernels/avx2_values-inl.h"
#include "kernels/coded_blocks.h"
#include "kernels/integer_kernels.h"

namespace cqkv::kernels {
namespace {

void score_codes(const ScoreCodes& call) noexcept {
  const CodedBlocks& blocks = call.blocks;
  PairRun runs[kMaxRuns];
  const ScoreTokens score = find_token_scorer(call);
  const int n_runs = score != nullptr ? find_runs(call, runs) : 0;
  if (n_runs > 0) {
    return score(call, runs, n_runs);
  }
  const DecodeSlice decode = blocks.code_bits <= 8 ? slice_decoder<std::uint8_t>(blocks.group_dim)
                                                   : slice_decoder<std::uint16_t>(blocks.group_dim);
  auto* tile = reinterpret_cast<std::uint32_t*>(call.scratch);
  auto* bytes =
      reinterpret_cast<std::int8_t*>(tile + static_cast<std::size_t>(call.n_pairs) * kBlockCells);
  for (int block = 0; block < blocks.n_blocks; block++) {
    for (int channel = 0; channel < blocks.n_channels; channel += kSlice) {
      decode(blocks, block, channel, bytes + static_cast<std::size_t>(channel) * kBlockCells);
    }
    score_block(call, block, bytes, tile);
  }
}

constexpr IntegerKernels kAvx2IntegerKernels = {.table_order = TableOrder::kByCode,
                                                .max_code_bits = 12,
                                                .pack_angles = pack_angles,
                                                .score_codes = score_codes,
                                                .accumulate_codes = accumulate_codes};

}  // namespace
}  // namespace cqkv::kernels
