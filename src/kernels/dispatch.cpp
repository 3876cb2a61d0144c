// Chooses the kernel table; see cqkv/isa.h. The choice is made once, on first use.
#include "kernels/dispatch.h"

#ifdef CQKV_HAVE_AVX2
#include <cpuid.h>
#endif
#ifdef CQKV_HAVE_NEON_DOTPROD
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <atomic>
#include <cstdlib>

#include "cqkv/isa.h"

namespace cqkv {
namespace {

using kernels::KernelTable;

#ifdef CQKV_HAVE_AVX2
// AVX2 with the operating system's consent, and the two extensions that came with it.
bool has_avx2() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  // Asked directly: clang 14's __builtin_cpu_supports does not know "f16c".
  const bool has_f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  return has_f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

#ifdef CQKV_HAVE_AVX512
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

#ifdef CQKV_HAVE_AVX512_VBMI
bool has_avx512_vbmi() {
  return has_avx512() && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

#ifdef CQKV_HAVE_NEON_DOTPROD
bool has_dotprod() {
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
}
#endif

// Compiled in and runnable here, best first.
std::vector<const KernelTable*> usable_tables() {
  std::vector<const KernelTable*> tables;
#ifdef CQKV_HAVE_AVX512_VBMI
  if (has_avx512_vbmi()) {
    tables.push_back(&kernels::kAvx512VbmiTable);
  }
#endif
#ifdef CQKV_HAVE_AVX512
  if (has_avx512()) {
    tables.push_back(&kernels::kAvx512Table);
  }
#endif
#ifdef CQKV_HAVE_AVX2
  if (has_avx2()) {
    tables.push_back(&kernels::kAvx2Table);
  }
#endif
#ifdef CQKV_HAVE_NEON_DOTPROD
  if (has_dotprod()) {
    tables.push_back(&kernels::kNeonDotprodTable);
  }
#endif
#ifdef CQKV_HAVE_NEON
  tables.push_back(&kernels::kNeonTable);
#endif
  tables.push_back(&kernels::kScalarTable);
  return tables;
}

// The table of that name, or null.
const KernelTable* find_table(std::string_view name) {
  for (const KernelTable* table : usable_tables()) {
    if (name == table->name) {
      return table;
    }
  }
  return nullptr;
}

Status unknown_isa(std::string_view name, std::string_view source) {
  std::string known;
  for (const KernelTable* table : usable_tables()) {
    known += (known.empty() ? "" : ", ") + std::string(table->name);
  }
  return unsupported(std::string(source) + ": got '" + std::string(name) +
                     "', want one that was compiled in and that this processor has: " + known);
}

// The choice of the environment, or the best level; `status` says what was wrong.
struct Choice {
  std::atomic<const KernelTable*> table;
  Status status;

  Choice() : table(usable_tables().front()) {
    // NOLINTNEXTLINE(concurrency-mt-unsafe): read once, before threads can matter
    const char* wanted = std::getenv("CQKV_FORCE_ISA");
    if (wanted == nullptr || *wanted == '\0') {
      return;
    }
    if (const KernelTable* forced = find_table(wanted)) {
      table = forced;
    } else {
      status = unknown_isa(wanted, "CQKV_FORCE_ISA");
    }
  }
};

Choice& choice() {
  static Choice instance;
  return instance;
}

}  // namespace

namespace kernels {

const KernelTable& active() {
  return *choice().table.load(std::memory_order_relaxed);
}

const KernelTable* integer_kernels(const KernelTable& kernel, int code_bits) {
  if (code_bits <= kernel.max_code_bits) {
    return &kernel;
  }
  return kernel.wide_codes == nullptr ? nullptr : integer_kernels(*kernel.wide_codes, code_bits);
}

}  // namespace kernels

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const KernelTable* table : usable_tables()) {
    names.emplace_back(table->name);
  }
  return names;
}

std::string active_isa() {
  return kernels::active().name;
}

Status force_isa(std::string_view name) {
  const KernelTable* table = find_table(name);
  if (table == nullptr) {
    return unknown_isa(name, "instruction set");
  }
  choice().table = table;
  return {};
}

Status isa_status() {
  return choice().status;
}

}  // namespace cqkv
