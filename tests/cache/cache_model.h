// A coded cache driven by a stream of bytes, through KvCache or an engine around it
// (cache_driver.h), beside a plain model of what must come out: for each cell the rows that were
// stored, whose token it is and whether it is exact. Every byte string is a legal run, so the same
// code serves random tests (cache_model_test.cpp) and the fuzzer (tests/fuzz).
// Operations: evaluate (store and attend), remove, take back, shift, copy a stream,
// save, restore, restore damaged rows, clear.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "cache/cache_driver.h"

namespace cqkv::testing {

/// The operations of one run, counted.
struct CacheModelCounts {
  std::size_t n_operations = 0;
  std::size_t n_attended = 0;  ///< Queries compared with the model.
  std::size_t n_exact = 0;     ///< Cells that queries saw exactly.
  std::size_t n_coded = 0;
};

/// What kind of cache.
enum class CacheKind {
  kUnified,    ///< Three sequences in one stream, exact rows for every cell.
  kSmallPool,  ///< The same with exact rows for one sequence: some are evicted.
  kStreams,    ///< Two streams of one sequence each.
};

/// Called around everything that the driver does, so that a test can make it fail there
/// and only there.
struct CacheFaults {
  void (*begin)() = nullptr;
  bool (*end)() = nullptr;  ///< Whether something was made to fail.
};

class CacheModel {
 public:
  CacheModel(MakeDriver make_driver, CacheKind kind, CacheFaults faults = {});
  ~CacheModel();
  CacheModel(const CacheModel&) = delete;
  CacheModel& operator=(const CacheModel&) = delete;
  CacheModel(CacheModel&&) = delete;
  CacheModel& operator=(CacheModel&&) = delete;

  /// Runs all operations that `bytes` hold on a cleared cache.
  /// @return "" or what differed from the model.
  std::string run(std::span<const std::uint8_t> bytes);

  const CacheModelCounts& counts() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cqkv::testing
