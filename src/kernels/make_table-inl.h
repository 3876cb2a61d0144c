// The table of a level: the kernels that are the same text at every level, and those on integers,
// which the level gives.
#pragma once

#include "kernels/decode-inl.h"
#include "kernels/encode-inl.h"
#include "kernels/exact_rows-inl.h"
#include "kernels/gather-inl.h"
#include "kernels/integer_kernels.h"
#include "kernels/kernel_table.h"
#include "kernels/products-inl.h"
#include "kernels/rotation-inl.h"
#include "kernels/softmax-inl.h"
#include "kernels/softmax_bytes-inl.h"
#include "kernels/transpose-inl.h"

namespace cqkv::kernels {
namespace {

// `wide_codes` as in KernelTable. A field in the wrong place does not compile; of one left out g++
// warns (-Wmissing-field-initializers, part of -Wextra), which CQKV_WERROR makes an error.
constexpr KernelTable make_table(isa::Level level, const IntegerKernels& integers,
                                 const KernelTable* wide_codes = nullptr) {
  return {.level = level,
          .encode_group = encode_group,
          .decode_channels = decode_channels,
          .decode_tokens = decode_tokens,
          .transpose_rows = transpose_rows,
          .combine_angles = combine_angles,
          .combine_run = combine_run,
          .rotate_pairs = rotate_pairs,
          .score_rows = score_rows,
          .cap_scores = cap_scores,
          .softmax_rows = softmax_rows,
          .accumulate_rows = accumulate_rows,
          .merge_rows = merge_rows,
          .add_residual = add_residual,
          .half_to_float_n = half_to_float_n,
          .table_order = integers.table_order,
          .max_code_bits = integers.max_code_bits,
          .wide_codes = wide_codes,
          .pack_angles = integers.pack_angles,
          .rotate_queries = rotate_queries,
          .gather_codes = gather_codes,
          .score_codes = integers.score_codes,
          .softmax_bytes = softmax_bytes,
          .accumulate_codes = integers.accumulate_codes};
}

}  // namespace
}  // namespace cqkv::kernels
