// Which of the tables of dense.h this processor can run.
#include "calibration/dense.h"

#include <string>
#include <vector>

#include "cqkv/isa.h"

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

}  // namespace

const Table& table() {
  const std::string level = active_isa();
  for (const Table* table : tables()) {
    if (table->name == level) {
      return *table;
    }
  }
  return *tables().back();  // level "scalar"
}

std::size_t n_tables() {
  return tables().size();
}

const Table& table_at(std::size_t index) {
  return *tables()[index];
}

}  // namespace cqkv::dense
