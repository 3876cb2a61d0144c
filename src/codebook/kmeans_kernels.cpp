// Chooses the k-means kernels; see kmeans.h and kmeans_kernels.h.
#include "codebook/kmeans_kernels.h"

#include "codebook/kmeans.h"

namespace cqkv::kmeans {

std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> levels;
#ifdef CQKV_HAVE_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    levels.push_back(&kAvx512Kernels);
  }
#endif
#ifdef CQKV_HAVE_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    levels.push_back(&kAvx2Kernels);
  }
#endif
  levels.push_back(&kScalarKernels);
  return levels;
}

const Kernels& active_kernels() {
  static const Kernels* const best = supported_kernels().front();
  return *best;
}

}  // namespace cqkv::kmeans
