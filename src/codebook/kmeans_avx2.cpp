// The AVX2 level of the k-means kernels.
#define CQKV_KMEANS_LANES "codebook/kmeans_lanes_avx2-inl.h"

#include "codebook/kmeans_kernels-inl.h"

namespace cqkv::kmeans {

const Kernels kAvx2Kernels = {isa::Level::kAvx2, seed, assign, sum};

}  // namespace cqkv::kmeans
