// The tables of attention kernels and which of them serves a level; see dispatch.h. Levels
// themselves, and which is in use, are src/isa's.
#include "kernels/dispatch.h"

#include "isa/select.h"

namespace cqkv::kernels {
namespace {

// Those compiled in.
constexpr const KernelTable* kTables[] = {
#ifdef CQKV_HAVE_AVX512_VBMI
    &kAvx512VbmiTable,
#endif
#ifdef CQKV_HAVE_AVX512
    &kAvx512Table,
#endif
#ifdef CQKV_HAVE_AVX2
    &kAvx2Table,
#endif
#ifdef CQKV_HAVE_NEON_DOTPROD
    &kNeonDotprodTable,
#endif
#ifdef CQKV_HAVE_NEON
    &kNeonTable,
#endif
    &kScalarTable,
};

}  // namespace

const KernelTable& table_for(isa::Level level) {
  return isa::best_of<KernelTable>(kTables, level);
}

// AVX-512 without VBMI brings attention no instruction that it wants, and lowers the processor's
// clock: where nobody asked for it, AVX2 is faster (docs/measurements.md).
const KernelTable& active() {
  const isa::Level level = isa::active_level();
  const bool better_below = level == isa::Level::kAvx512 && !isa::is_forced();
  return table_for(better_below ? isa::level_below(level) : level);
}

const KernelTable* integer_kernels(const KernelTable& kernel, int code_bits) {
  if (code_bits <= kernel.max_code_bits) {
    return &kernel;
  }
  return kernel.wide_codes == nullptr ? nullptr : integer_kernels(*kernel.wide_codes, code_bits);
}

}  // namespace cqkv::kernels
