// What an instruction set has of its own in its table: the kernels of integers, which are written
// for each (integer_*-inl.h). Plain data, included by the per-instruction-set files.
#pragma once

#include "kernels/coded_blocks.h"
#include "kernels/kernel_table.h"

namespace cqkv::kernels {

/// The fields of KernelTable of the same names.
struct IntegerKernels {
  TableOrder table_order;
  int max_code_bits;
  decltype(KernelTable::pack_angles) pack_angles;
  decltype(KernelTable::score_codes) score_codes;
  decltype(KernelTable::accumulate_codes) accumulate_codes;
};

}  // namespace cqkv::kernels
