// CQKV_UNROLLED and CQKV_UNROLLED_16 stand before loops of up to 8 or 16 passes whose variables
// must be constants for the code to be good. With the checks of a sanitizer it is not, and would
// take minutes to compile: there they say nothing.
#pragma once

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CQKV_UNROLLED
#define CQKV_UNROLLED_16
#else
#define CQKV_UNROLLED _Pragma("GCC unroll 8")
#define CQKV_UNROLLED_16 _Pragma("GCC unroll 16")
#endif
