// Chooses the k-means kernels; see kmeans.h and kmeans_kernels.h. The level is that of
// the attention kernels (cqkv/isa.h), so forcing one forces both.
#include "codebook/kmeans_kernels.h"

#include "cqkv/isa.h"

#include "codebook/kmeans.h"

namespace cqkv::kmeans {
namespace {

const Kernels& level([[maybe_unused]] std::string_view name) {
#ifdef CQKV_HAVE_AVX512
  if (name == kAvx512Kernels.name) {
    return kAvx512Kernels;
  }
#endif
#ifdef CQKV_HAVE_AVX2
  if (name == kAvx2Kernels.name) {
    return kAvx2Kernels;
  }
#endif
  return kScalarKernels;
}

}  // namespace

std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> levels;
  for (const std::string& name : supported_isas()) {
    levels.push_back(&level(name));
  }
  return levels;
}

const Kernels& active_kernels() {
  return level(active_isa());
}

}  // namespace cqkv::kmeans
