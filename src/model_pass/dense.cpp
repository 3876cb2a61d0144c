// The tables of dense.h and which of them serves a level. Levels themselves, and which is in
// use, are src/isa's.
#include "model_pass/dense.h"

#include "isa/select.h"

namespace cqkv::dense {

extern const Table kPortableTable;
extern const Table kAvx2Table;
extern const Table kAvx512Table;

namespace {

// Those compiled in, best first.
constexpr const Table* kTables[] = {
#ifdef CQKV_HAVE_AVX512
    &kAvx512Table,
#endif
#ifdef CQKV_HAVE_AVX2
    &kAvx2Table,
#endif
    &kPortableTable,
};

}  // namespace

const Table& table_for(isa::Level level) {
  return isa::best_of<Table>(kTables, level);
}

const Table& table() {
  return table_for(isa::active_level());
}

std::vector<const Table*> supported_tables() {
  return isa::usable_of<Table>(kTables);
}

}  // namespace cqkv::dense
