// The vectors of one instruction set: includes exactly one simd_*-inl.h. Each of these has, in an
// anonymous namespace:
//
//     constexpr int kLanes             4, 8 or 16
//     Vec, IntVec                      kLanes floats or integers, the compiler's vector extension
//     multiply_add(Vec a, b, c)        a b + c, rounded once or twice
//     widen(in)                        kLanes half floats to floats
//     Bytes                            16 bytes, likewise
//     pick_bytes(from, order)          byte i is from[order[i]], or 0 where order[i] is kNoCell
//     powers_row(y, out)               64 powers of two to bytes, and their sum (byte_powers.h);
//                                      of -inf and NaN 0
//
// What can be written with these for all levels is not here but in vec-inl.h and above.
//
// Each level's .cpp names its header in CQKV_SIMD before it includes anything: the compiler's flags
// alone do not say which level is meant. On Arm the scalar level is compiled for a baseline that
// has NEON, and a whole build may be given -march=native. Where nothing is named, as when a header
// is compiled alone, it is the best that the flags allow.
//
// This and all *-inl.h are compiled with the flags of the .cpp that includes them. So everything is
// in an anonymous namespace, and there are no standard containers and no inline functions of
// others, which the linker could share with baseline code (tests/kernels/check_isa_objects.sh).
#pragma once

#if defined(CQKV_SIMD)
#include CQKV_SIMD
#elif defined(__AVX512F__)
#include "kernels/simd_avx512-inl.h"
#elif defined(__AVX2__)
#include "kernels/simd_avx2-inl.h"
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include "kernels/simd_neon-inl.h"
#else
#include "kernels/simd_scalar-inl.h"
#endif
