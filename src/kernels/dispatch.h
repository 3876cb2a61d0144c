// The kernel table in use. Callers fetch it once per call, outside their loops.
#pragma once

#include "kernels/kernel_table.h"

namespace cqkv::kernels {

const KernelTable& active();

/// The best table at or below `level` (isa/select.h).
const KernelTable& table_for(isa::Level level);

/// Whose integer kernels (table_order, pack_angles, score_codes, accumulate_codes) serve codes of
/// that many bits where `kernel` is in use: its own or another level's; null: nobody's.
const KernelTable* integer_kernels(const KernelTable& kernel, int code_bits);

}  // namespace cqkv::kernels
