// The scalar level of the k-means kernels: compiled for the platform's baseline, always present.
#define CQKV_KMEANS_LANES "codebook/kmeans_lanes_scalar-inl.h"

#include "codebook/kmeans_kernels-inl.h"

namespace cqkv::kmeans {

const Kernels kScalarKernels = {isa::Level::kScalar, seed, assign, sum};

}  // namespace cqkv::kmeans
