// The AVX-512 level of the k-means kernels.
#define CQKV_KMEANS_LANES "codebook/kmeans_lanes_avx512-inl.h"

#include "codebook/kmeans_kernels-inl.h"

namespace cqkv::kmeans {

const Kernels kAvx512Kernels = {isa::Level::kAvx512, seed, assign, sum};

}  // namespace cqkv::kmeans
