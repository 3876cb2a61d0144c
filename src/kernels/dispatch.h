// The kernel table in use. Callers fetch it once per call, outside their loops.
#pragma once

#include "kernels/kernel_table.h"

namespace cqkv::kernels {

const KernelTable& active();

}  // namespace cqkv::kernels
