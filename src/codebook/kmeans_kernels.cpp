// The tables of k-means kernels and which of them serves a level; see kmeans.h and
// kmeans_kernels.h. Levels themselves, and which is in use, are src/isa's.
#include "codebook/kmeans_kernels.h"

#include "codebook/kmeans.h"
#include "isa/select.h"

namespace cqkv::kmeans {
namespace {

// Those compiled in, best first.
constexpr const Kernels* kTables[] = {
#ifdef CQKV_HAVE_AVX512
    &kAvx512Kernels,
#endif
#ifdef CQKV_HAVE_AVX2
    &kAvx2Kernels,
#endif
    &kScalarKernels,
};

}  // namespace

const Kernels& kernels_for(isa::Level level) {
  return isa::best_of<Kernels>(kTables, level);
}

const Kernels& active_kernels() {
  return kernels_for(isa::active_level());
}

std::vector<const Kernels*> supported_kernels() {
  return isa::usable_of<Kernels>(kTables);
}

}  // namespace cqkv::kmeans
