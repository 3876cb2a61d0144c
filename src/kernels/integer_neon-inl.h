// The integer kernels for NEON, of which the parts are in neon_*-inl.h. Both NEON levels use them;
// they differ in how values are multiplied. Here is only what the table gets.
//
// Centroids are looked up by code, by loading them: eight channels of a token are two loads (the
// code, the centroid), 32 for 128 channels. By channel, tbl takes four instructions for sixteen
// codes of one channel: 32 for 128 channels as well, but of the kind that reads four registers,
// which many cores split; and a table's sixteen registers have to be loaded for each block.
#pragma once

#include "kernels/coded_blocks.h"
#include "kernels/integer_kernels.h"
#include "kernels/neon_keys-inl.h"
#include "kernels/neon_scores-inl.h"
#include "kernels/neon_values-inl.h"

namespace cqkv::kernels {
namespace {

// TokenQuad: see neon_values-inl.h.
template <typename TokenQuad>
constexpr IntegerKernels kNeonIntegerKernels = {.table_order = TableOrder::kByCode,
                                                .max_code_bits = 12,
                                                .pack_angles = pack_angles,
                                                .score_codes = score_codes,
                                                .accumulate_codes = accumulate_codes<TokenQuad>};

}  // namespace
}  // namespace cqkv::kernels
