// Chooses the kernel table; see cqkv/isa.h.
#include "kernels/dispatch.h"

namespace cqkv::kernels {

const KernelTable& active() { return kScalarTable; }

}  // namespace cqkv::kernels
