// Asks the processor, and the operating system, for what levels need; see select.h.
#include "isa/select.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace cqkv::isa {

#if defined(__x86_64__)

namespace {

// Asked directly: clang 14's __builtin_cpu_supports does not know "f16c".
bool has_f16c() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

}  // namespace

// __builtin_cpu_supports also looks at what the operating system saves.
Features detect_features() {
  Features features = has_f16c() ? kHasF16c : 0;
  features |= __builtin_cpu_supports("avx2") ? kHasAvx2 : 0;
  features |= __builtin_cpu_supports("fma") ? kHasFma : 0;
  features |= __builtin_cpu_supports("avx512f") ? kHasAvx512f : 0;
  features |= __builtin_cpu_supports("avx512bw") ? kHasAvx512bw : 0;
  features |= __builtin_cpu_supports("avx512dq") ? kHasAvx512dq : 0;
  features |= __builtin_cpu_supports("avx512vl") ? kHasAvx512vl : 0;
  features |= __builtin_cpu_supports("avx512vbmi") ? kHasAvx512vbmi : 0;
  features |= __builtin_cpu_supports("avx512vnni") ? kHasAvx512vnni : 0;
  return features;
}

#elif defined(__aarch64__)

Features detect_features() {
  Features features = kHasNeon;
#if defined(__linux__)
  features |= (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0 ? kHasDotprod : 0;
#endif
  return features;
}

#else

Features detect_features() {
  return 0;
}

#endif

}  // namespace cqkv::isa
