// Which of the tables of dense.h this processor can run.
#include "calibration/dense.h"

#include <cstdlib>
#include <string_view>
#include <vector>

namespace cqkv::dense {

extern const Table kPortableTable;
#if CQKV_HAVE_AVX512 && CQKV_HAVE_AVX2
extern const Table kAvx2Table;
extern const Table kAvx512Table;
#endif

namespace {

std::vector<const Table*> find_tables() {
  std::vector<const Table*> tables;
#if CQKV_HAVE_AVX512 && CQKV_HAVE_AVX2
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
    tables.push_back(&kAvx512Table);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    tables.push_back(&kAvx2Table);
  }
#endif
  tables.push_back(&kPortableTable);
  return tables;
}

const std::vector<const Table*>& tables() {
  static const std::vector<const Table*> all = find_tables();
  return all;
}

const Table& choose() {
  const char* forced = std::getenv("CQKV_FORCE_ISA");
  if (forced == nullptr || *forced == '\0') {
    return *tables().front();
  }
  for (const Table* table : tables()) {
    if (std::string_view(table->name) == forced) {
      return *table;
    }
  }
  return *tables().back();
}

}  // namespace

const Table& table() {
  static const Table& chosen = choose();
  return chosen;
}

std::size_t n_tables() {
  return tables().size();
}

const Table& table_at(std::size_t index) {
  return *tables()[index];
}

}  // namespace cqkv::dense
