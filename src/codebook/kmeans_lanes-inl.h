// The lanes of one instruction set, for the k-means kernels: includes exactly one
// kmeans_lanes_*-inl.h. Each of these has, in an anonymous namespace:
//
//     Lanes                            kLanes floats
//     load, store, splat, add, subtract, smaller
//     add_square(difference, sum)      sum + difference^2, rounded once or twice
//     add_product(a, b, sum)           sum + a b, likewise
//     lowest                           the least lane
//     mask_below, mask_equal           bit l for lane l
//     select_below(a, b, c, d)         c where a < b, else d
//     without(a, l)                    lane l becomes infinite; any other l: none
//     root                             of a single float
//
// The kernels are in kmeans_kernels-inl.h. These are not the vectors of kernels/simd-inl.h: kLanes
// is the same at all levels here, since it is part of the order of sums.
//
// Each level's .cpp names its header in CQKV_KMEANS_LANES before it includes anything, as with
// CQKV_SIMD (kernels/simd-inl.h says why, and what all *-inl.h must do without). Where nothing is
// named, as when a header is compiled alone, it is the best that the flags allow.
#pragma once

#if defined(CQKV_KMEANS_LANES)
#include CQKV_KMEANS_LANES
#elif defined(__AVX512F__) && defined(__AVX512DQ__)
#include "codebook/kmeans_lanes_avx512-inl.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "codebook/kmeans_lanes_avx2-inl.h"
#else
#include "codebook/kmeans_lanes_scalar-inl.h"
#endif
