// What the attentions of the operator benchmark should have come to, and how far off they are.
#pragma once

#include <vector>

#include "bench_attend.h"
#include "bench_report.h"

namespace cqkv::app {

/// Slow results for one cache of codes.
class BenchReference {
 public:
  /// Ours in floats, and ggml's on f32 rows: on f16 rows ggml sums values in 16 bits, which
  /// over many tokens is further off than what is to be checked.
  static Result<BenchReference> compute(const BenchShape& shape, const BenchInputs& inputs,
                                        const BenchCodes& codes);

  /// @param out    [stream, query, head, head_dim]
  /// @param coded  of our attention over these codes.
  BenchDifferences compare(const float* out, bool coded) const;

 private:
  BenchReference() = default;

  std::size_t head_dim_ = 0;
  std::vector<float> floats_;
  std::vector<float> ggml_;
};

/// kMismatch if ours is further off than roundings can explain (docs/commands.md). ggml's own
/// types may be as far off as they are.
Status check_differences(const BenchRow& row);

}  // namespace cqkv::app
